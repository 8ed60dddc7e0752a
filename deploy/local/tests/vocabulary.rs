//! The words of `docs/glossary.md`: documents, comments, help, metrics and errors use the terms of
//! the field, and links in documents lead to files.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Retired words, and what to write instead. Matched as whole words, whatever their case.
const RETIRED: [(&str, &str); 27] = [
    ("nobody", "the caller, no sequence, no worker"),
    ("somebody", "the caller, a client, a sequence"),
    ("whoever", "the caller, the sequence, the worker"),
    ("everybody", "all callers, all workers"),
    ("anybody", "any caller"),
    ("guess", "draft token, estimate"),
    ("guesses", "draft tokens, estimates"),
    ("guessed", "drafted, estimated"),
    ("guessing", "drafting, estimating"),
    ("purse", "exploration budget"),
    ("reckon", "compute"),
    ("reckons", "computes"),
    ("reckoned", "computed"),
    ("so many", "N, a factor of N"),
    ("told", "sent, reported, emitted"),
    ("let go", "release"),
    ("lets go", "releases"),
    ("made-up", "synthetic"),
    ("asking", "request"),
    ("put out", "ejected"),
    ("left alone", "ejected"),
    ("standing", "stalled, queue key"),
    ("stands still", "is stalled"),
    ("hello", "accepted event"),
    ("answer", "response"),
    ("answers", "responses, returns"),
    ("answered", "responded, ended"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every file below `folder` whose name ends with one of `ends`, build outputs and test data left
/// out.
fn files(folder: &Path, ends: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let is_left_out = ["target", "node_modules"].contains(&&*name) || name.starts_with('.');
        if path.is_dir() && !is_left_out {
            files(&path, ends, found);
        } else if path.is_file() && ends.iter().any(|end| name.ends_with(end)) {
            found.push(path);
        }
    }
}

/// Where `word` occurs in `text` as a whole word, as numbers of lines from 1.
fn lines_with(text: &str, word: &str) -> Vec<usize> {
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let has = |line: &str| {
        let line = line.to_lowercase();
        line.match_indices(word).any(|(at, _)| {
            !is_word(line[..at].chars().next_back())
                && !is_word(line[at + word.len()..].chars().next())
        })
    };
    (1..).zip(text.lines()).filter(|(_, line)| has(line)).map(|(number, _)| number).collect()
}

/// What people read of a file: of a source its comments and the text in quotes, of a document all
/// but quotations, which are output of a model.
fn readable(path: &Path, text: &str) -> String {
    if path.extension().is_none_or(|end| end != "rs" && end != "proto") {
        let lines = text.lines().map(|line| if line.starts_with("> ") { "" } else { line });
        return lines.collect::<Vec<_>>().join("\n");
    }
    let prose = |line: &str| match line.find("//") {
        Some(at) => line[at..].to_owned(),
        None => line.split('"').skip(1).step_by(2).collect::<Vec<_>>().join(" "),
    };
    text.lines().map(prose).collect::<Vec<_>>().join("\n")
}

#[test]
fn retired_words_are_not_used() {
    let mut read = Vec::new();
    files(&root(), &[".md", ".rs", ".proto", ".py", ".toml"], &mut read);
    // This list itself, and stories that are data.
    let data = ["deploy/local/tests/vocabulary.rs", "worker/engine/tests/vectors/make.py"];
    read.retain(|path| !data.iter().any(|data| path.starts_with(root().join(data))));
    assert!(read.len() > 500, "{} files is not all of them", read.len());
    let mut found = Vec::new();
    for path in read {
        let text = readable(&path, &fs::read_to_string(&path).unwrap());
        for (word, instead) in RETIRED {
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            let lines = lines_with(&text, word);
            found.extend(lines.iter().map(|line| format!("{name}:{line} {word:?}: {instead}")));
        }
    }
    assert!(found.is_empty(), "{} retired words:\n{}", found.len(), found.join("\n"));
}

#[test]
fn whole_words_are_found_and_parts_of_others_are_not() {
    let text = "an answer\nthe answering machine\nThe Answer.\nno_answer_here\nlet go";
    assert_eq!(lines_with(text, "answer"), [1, 3]);
    assert_eq!(lines_with(text, "let go"), [5]);
    let code = "let answer = 1; // an answer\nlet told = 2;\nlog(\"told\")";
    let code = readable(Path::new("x.rs"), code);
    assert_eq!((lines_with(&code, "answer"), lines_with(&code, "told")), (vec![1], vec![3]));
}

/// The targets of Markdown links and of pictures in `text`.
fn links(text: &str) -> Vec<&str> {
    let of = |start: &str, end: char| {
        let start = start.to_owned();
        text.match_indices(start.clone().as_str())
            .filter_map(|(at, _)| text[at + start.len()..].split_once(end))
            .map(|(link, _)| link)
            .collect::<Vec<_>>()
    };
    [of("](", ')'), of("src=\"", '"'), of("srcset=\"", '"')].concat()
}

#[test]
fn links_in_documents_lead_to_files() {
    let mut documents = Vec::new();
    files(&root(), &[".md"], &mut documents);
    let mut checked = 0;
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for link in links(&text).into_iter().filter(|link| !link.contains(':')) {
            let file = link.split('#').next().unwrap();
            let target = document.parent().unwrap().join(file);
            assert!(file.is_empty() || target.exists(), "{}: {link}", document.display());
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked} links is not all of them");
}

/// The paths in backticks of a document that begin with a folder of the root.
fn paths(text: &str) -> Vec<&str> {
    let folders = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir() && entry.file_name() != "target");
    let folders: Vec<_> =
        folders.map(|entry| format!("{}/", entry.file_name().to_string_lossy())).collect();
    let is_path = |code: &&str| {
        folders.iter().any(|folder| code.starts_with(folder))
            && !code.contains([' ', '*', '{', '<', '\n'])
    };
    text.split('`').skip(1).step_by(2).filter(is_path).collect()
}

#[test]
fn paths_in_documents_lead_to_files() {
    let mut documents = Vec::new();
    files(&root(), &[".md"], &mut documents);
    // A decision says what was so on its day.
    documents.retain(|document| !document.starts_with(root().join("docs/decisions")));
    let mut checked = 0;
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for path in paths(&text) {
            assert!(root().join(path).exists(), "{}: {path}", document.display());
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked} paths is not all of them");
}
