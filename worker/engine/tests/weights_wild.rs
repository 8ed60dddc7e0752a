//! Files as tools in use write them: other names, tables that follow from the configuration, absent keys,
//! unread keys that break the format, and files that are something else.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "weights_support/counting.rs"]
#[allow(dead_code, reason = "reads are not counted here")]
mod counting;
#[path = "weights_support/folder_builder.rs"]
mod folder_builder;
#[path = "weights_support/gguf_builder.rs"]
#[allow(dead_code, reason = "another test writes the values not written here")]
mod gguf_builder;

use folder_builder::{FolderBuilder, MemoryFolder, safetensors};
use gguf_builder::{GgufBuilder, array_value, raw_value, text, texts_value, u32_value};
use serde_json::json;
use stoker_engine::tokenizer::SpecialTokens;
use stoker_engine::weights::{ModelFiles, Source};

fn open(builder: &FolderBuilder) -> Result<ModelFiles, String> {
    open_folder(&builder.build())
}

fn open_folder(folder: &MemoryFolder) -> Result<ModelFiles, String> {
    ModelFiles::from_folder(folder).map_err(|error| error.to_string())
}

fn open_gguf(builder: &GgufBuilder) -> Result<ModelFiles, String> {
    let source = Source::new("tiny.gguf", builder.build().0);
    ModelFiles::from_gguf(source).map_err(|error| error.to_string())
}

/// Renames the tensors of a tiny folder.
fn renamed(rename: impl Fn(&str) -> String) -> FolderBuilder {
    let mut builder = FolderBuilder::tiny();
    for (name, ..) in &mut builder.tensors {
        *name = rename(name);
    }
    builder
}

/// All tensors of a model, by name.
fn tensors(model: &ModelFiles) -> Vec<(String, Vec<f32>)> {
    let names = model.tensors().map(|tensor| tensor.name.clone());
    names.map(|name| (name.clone(), model.read_f32(&name).unwrap())).collect()
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn a_tied_table_is_read_under_either_name() {
    let expected = tensors(&open(&FolderBuilder::tiny()).unwrap());
    let under_head = renamed(|name| name.replace("model.embed_tokens", "lm_head"));
    assert_eq!(tensors(&open(&under_head).unwrap()), expected);
    // Not where the two are not the same.
    let mut untied = under_head;
    untied.config["tie_word_embeddings"] = json!(false);
    let message = open(&untied).unwrap_err();
    let advice =
        ["embed_tokens.weight is missing", "if the embedding is lm_head.weight, set tie_word"];
    assert_says(&message, &advice);
}

#[test]
fn names_may_have_another_prefix_or_none() {
    let expected = tensors(&open(&FolderBuilder::tiny()).unwrap());
    for prefix in ["", "module.model.", "_orig_mod.model.", "transformer."] {
        let builder = renamed(|name| name.replacen("model.", prefix, 1));
        assert_eq!(tensors(&open(&builder).unwrap()), expected, "{prefix:?}");
        // Errors have the names of the file.
        let mut short = builder;
        short.tensors.retain(|(name, ..)| !name.ends_with("norm.weight") || name.contains("layer"));
        let message = open(&short).unwrap_err();
        assert_says(&message, &[&format!("tensor {prefix}norm.weight is missing")]);
    }
    // The head has the outer part of the prefix.
    let mut wrapped = renamed(|name| format!("module.{name}"));
    wrapped.add("module.lm_head", &[5, 8]);
    wrapped.config["tie_word_embeddings"] = json!(false);
    assert_eq!(open(&wrapped).unwrap().tensors().len(), 12);
}

#[test]
fn an_untied_model_without_a_head_is_explained() {
    let mut builder = FolderBuilder::tiny();
    builder.config["tie_word_embeddings"] = json!(false);
    let message = open(&builder).unwrap_err();
    assert_says(&message, &["lm_head.weight is missing", "set tie_word_embeddings to true"]);
    let mut base = renamed(|name| name.replacen("model.", "", 1));
    base.config["tie_word_embeddings"] = json!(false);
    assert_says(&open(&base).unwrap_err(), &["saved from a decoder without its head"]);
}

#[test]
fn two_decoders_are_refused() {
    let mut builder = FolderBuilder::tiny();
    builder.add("vision.layers.0.input_layernorm", &[8]);
    let message = open(&builder).unwrap_err();
    assert_says(&message, &["vision.layers.0.input_layernorm.weight is not one that"]);
}

#[test]
fn tables_that_follow_from_the_configuration_are_not_read() {
    let expected = tensors(&open(&FolderBuilder::tiny()).unwrap());
    for name in [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.0.self_attn.rotary_emb.cos_cached",
        "model.layers.0.self_attn.rotary_emb.sin_cached",
        "model.rotary_emb.inv_freq",
        "model.rotary_emb.original_inv_freq",
        "rope.freqs",
        "layers.0.attention.rope.freqs",
        "model.embeddings.position_ids",
    ] {
        // Of a type, too, that no weight has.
        for (dtype, bytes) in [("F32", 4), ("I64", 8)] {
            let mut builder = FolderBuilder::tiny();
            builder.tensors.push((name.to_owned(), dtype, vec![3], vec![7; 3 * bytes]));
            assert_eq!(tensors(&open(&builder).unwrap()), expected, "{name} {dtype}");
        }
    }
    let mut builder = FolderBuilder::tiny();
    builder.add("model.layers.0.self_attn.rotary_scale", &[2]);
    assert_says(&open(&builder).unwrap_err(), &["rotary_scale.weight is not one that"]);

    let mut builder = GgufBuilder::tiny();
    builder.add_f32("blk.0.attn_rot_embd.weight", &[2]);
    assert_eq!(open_gguf(&builder).unwrap().tensors().len(), 11);
}

#[test]
fn token_types_and_scores_are_optional() {
    let mut builder = GgufBuilder::tiny();
    let tokens = ["<unk>", "<s>", "</s>", "\u{2581}", "a", "b", "ab", "<0x41>"];
    builder.set("tokenizer.ggml.tokens", texts_value(tokens));
    builder.tensor("token_embd.weight").dims = vec![8, 8];
    builder.tensor("token_embd.weight").data = vec![0; 8 * 8 * 4];
    builder.remove("tokenizer.ggml.token_type");
    builder.remove("tokenizer.ggml.scores");
    let model = open_gguf(&builder).unwrap();
    let tokenizer = model.tokenizer();
    assert_eq!(tokenizer.encode("ab", false).unwrap(), [3, 6]);
    // A byte without a token of its own, a token that marks structure, and one that no token spells.
    assert_eq!(tokenizer.encode("A", false).unwrap(), [3, 7]);
    assert!(tokenizer.is_special(1) && tokenizer.is_special(2) && !tokenizer.is_special(4));
    assert_eq!(tokenizer.encode("z", false).unwrap(), [3, 0]);
}

#[test]
fn end_tokens_are_those_of_all_files_that_name_them() {
    let with = |files: &[(&'static str, &str)]| {
        let mut folder = FolderBuilder::tiny().build();
        folder.files.extend(files.iter().map(|(name, text)| (*name, text.as_bytes().to_vec())));
        open_folder(&folder).unwrap().config().eos_token_ids.clone()
    };
    let generation = ("generation_config.json", r#"{ "eos_token_id": [2, 3] }"#);
    assert_eq!(with(&[("tokenizer_config.json", r#"{ "eos_token": "a" }"#)]), [2, 4]);
    let object = r#"{ "eos_token": { "content": "a", "lstrip": false } }"#;
    assert_eq!(with(&[generation, ("tokenizer_config.json", object)]), [2, 3, 4]);
    // What is no token of the model ends nothing.
    for text in
        [r#"{ "eos_token": "<none>" }"#, r#"{ "eos_token": null }"#, r#"{ "eos_token": 7 }"#]
    {
        assert_eq!(with(&[("tokenizer_config.json", text)]), [2], "{text}");
    }
    let model = open_gguf(&{
        let mut builder = GgufBuilder::tiny();
        builder.set("tokenizer.ggml.eot_token_id", u32_value(3));
        builder.set("tokenizer.ggml.eom_token_id", u32_value(4));
        builder
    });
    assert_eq!(model.unwrap().tokenizer().eos_ids(), [2, 3, 4]);
}

#[test]
fn what_is_not_read_does_not_stop_a_model() {
    let latin_1 = [&9u64.to_le_bytes()[..], b"caf\xE9 bar!"].concat();
    let list = |kind: u32, count: u64, items: &[u8]| {
        [&kind.to_le_bytes()[..], &count.to_le_bytes(), items].concat()
    };
    let lists = [
        list(8, 2, &[text("a"), text("bc")].concat()),
        list(4, 1, &[0; 4]),
        list(9, 1, &list(0, 3, &[1; 3])),
    ];
    let lists = array_value(9, 3, &lists.concat());
    for (key, value) in [
        ("general.description", raw_value(8, latin_1)),
        ("general.tags", lists),
        ("general.languages", texts_value([&b"en"[..], b"\xFF"])),
        ("general.flag", raw_value(7, vec![9])),
        ("tokenizer.chat_template", u32_value(1)),
    ] {
        let mut builder = GgufBuilder::tiny();
        builder.set(key, value);
        let model = open_gguf(&builder).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!(model.tensors().len(), 11, "{key}");
    }
    // It does where it is read.
    let mut builder = GgufBuilder::tiny();
    builder.set("tokenizer.ggml.model", raw_value(8, [&1u64.to_le_bytes()[..], b"\xFF"].concat()));
    let message = open_gguf(&builder).unwrap_err();
    assert_says(&message, &["tokenizer.ggml.model", "text that is not UTF-8", "expected a string"]);
}

#[test]
fn marks_and_trailing_commas_are_accepted_in_json() {
    let marked = |bytes: &[u8]| [b"\xEF\xBB\xBF", bytes].concat();
    for name in ["config.json", "tokenizer.json"] {
        let mut folder = FolderBuilder::tiny().build();
        let file = folder.file(name);
        *file = marked(file);
        open_folder(&folder).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let mut folder = FolderBuilder::tiny().build();
    let tokenizer = marked(b"{ \"chat_template\": {\"default\": \"one\"}, \"eos_token\": \"a\", }");
    folder.files.push(("tokenizer_config.json", tokenizer));
    folder.files.push(("generation_config.json", marked(b"{ \"eos_token_id\": [3,], }")));
    let model = open_folder(&folder).unwrap();
    assert_eq!(model.chat_templates().plain(), Some("one"));
    assert_eq!(model.config().eos_token_ids, [2, 3, 4]);
    // What cannot be read is left out, and does not stop the model.
    *folder.file("tokenizer_config.json") = b"{ \"chat_template\" ".to_vec();
    assert_eq!(open_folder(&folder).unwrap().chat_templates().plain(), None);
}

#[test]
fn errors_have_the_names_of_the_file() {
    let mut builder = GgufBuilder::tiny();
    builder.tensors.retain(|tensor| tensor.name != "blk.0.ffn_norm.weight");
    assert_says(&open_gguf(&builder).unwrap_err(), &["tensor blk.0.ffn_norm.weight is missing"]);

    let mut builder = GgufBuilder::tiny();
    builder.tensor("blk.0.attn_k.weight").dims = vec![8, 8];
    builder.tensor("blk.0.attn_k.weight").data = vec![0; 256];
    assert_says(
        &open_gguf(&builder).unwrap_err(),
        &["tensor blk.0.attn_k.weight has shape [8, 8]"],
    );

    // A token too many.
    let mut builder = GgufBuilder::tiny();
    builder
        .set("tokenizer.ggml.tokens", texts_value(["<unk>", "<s>", "</s>", "\u{2581}", "a", "b"]));
    builder.remove("tokenizer.ggml.token_type");
    builder.remove("tokenizer.ggml.scores");
    let parts = ["token_embd.weight: has 5 rows", "6 tokens (tokenizer.ggml.tokens)"];
    assert_says(&open_gguf(&builder).unwrap_err(), &parts);
    let mut builder = FolderBuilder::tiny();
    builder.config["vocab_size"] = json!(6);
    let parts = ["model.embed_tokens.weight: has 5 rows", "6 tokens (vocab_size of config.json)"];
    assert_says(&open(&builder).unwrap_err(), &parts);
}

#[test]
fn files_that_are_something_else_are_recognised() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n";
    for (bytes, part) in [
        (pointer.as_bytes(), "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>".as_slice(), "is a web page"),
        (b"  <html lang=\"en\">", "is a web page"),
        (b"<?xml version=\"1.0\"?><Error/>", "is an XML document"),
        (b"PK\x03\x04 and more", "is a zip archive"),
        (b"\x1F\x8B and more", "is compressed with gzip"),
        (b"", "is empty"),
    ] {
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            let mut folder = FolderBuilder::tiny().build();
            *folder.file(name) = bytes.to_vec();
            let message = open_folder(&folder).unwrap_err();
            assert_says(&message, &[&format!("tiny/{name}: the file: "), part]);
        }
        let source = Source::new("tiny.gguf", bytes.to_vec());
        let message = ModelFiles::from_gguf(source).unwrap_err().to_string();
        assert_says(&message, &["tiny.gguf: the file: ", part]);
    }
    let source = Source::new("tiny.gguf", b"GGML and more".to_vec());
    let message = ModelFiles::from_gguf(source).unwrap_err().to_string();
    assert_says(&message, &["the magic number: is \"GGML\" instead of \"GGUF\""]);
}

#[test]
fn one_file_beside_an_index_is_read_unless_it_is_not_whole() {
    let builder = FolderBuilder::tiny();
    let expected = tensors(&open(&builder).unwrap());
    let (first, second) = builder.tensors.split_at(4);
    let place = |tensors: &[folder_builder::Tensor], file: &str| {
        tensors.iter().map(|tensor| (tensor.0.clone(), json!(file))).collect::<Vec<_>>()
    };
    let map = [place(first, "a.safetensors"), place(second, "b.safetensors")].concat();
    let map: serde_json::Map<_, _> = map.into_iter().collect();
    let index = json!({ "weight_map": map }).to_string().into_bytes();
    let mut folder = builder.build();
    folder.files.push(("model.safetensors.index.json", index));
    // The shards are not even there.
    assert_eq!(tensors(&open_folder(&folder).unwrap()), expected);
    // A stray shard under that name.
    *folder.file("model.safetensors") = safetensors(first);
    folder.files.push(("a.safetensors", safetensors(first)));
    folder.files.push(("b.safetensors", safetensors(second)));
    assert_eq!(tensors(&open_folder(&folder).unwrap()), expected);
    *folder.file("model.safetensors") = b"broken".to_vec();
    assert_eq!(tensors(&open_folder(&folder).unwrap()), expected);
}

#[test]
fn special_tokens_in_a_prompt_are_parsed_or_text_and_never_doubled() {
    let mut builder = GgufBuilder::tiny();
    let tokens = ["<unk>", "<s>", "</s>", "\u{2581}", "a", "<", "s", ">"];
    builder.set("tokenizer.ggml.tokens", texts_value(tokens));
    builder.tensor("token_embd.weight").dims = vec![8, 8];
    builder.tensor("token_embd.weight").data = vec![0; 8 * 8 * 4];
    builder.remove("tokenizer.ggml.token_type");
    builder.remove("tokenizer.ggml.scores");
    let model = open_gguf(&builder).unwrap();
    let encode = |text: &str, add, parse| {
        model.tokenizer().encode_prompt(text, SpecialTokens { add, parse }).unwrap()
    };
    assert_eq!(encode("a", true, true), [1, 3, 4]);
    assert_eq!(encode("a", false, true), [3, 4]);
    // Spelled out: not added again, and not taken away where it is not added.
    assert_eq!(encode("<s>a", true, true)[..2], [1, 3]);
    assert_eq!(encode("<s>", true, true), [1]);
    assert_eq!(encode("<s><s>", true, true), [1, 1]);
    assert_eq!(encode("<s>", false, true), [1]);
    assert_eq!(encode("a<s>", true, true), [1, 3, 4, 1]);
    // As text it is no token, and the beginning token is added before it.
    assert_eq!(encode("<s>a", true, false), [1, 3, 5, 6, 7, 4]);
    assert_eq!(encode("<s>", false, false), [3, 5, 6, 7]);
}

/// A tiny model in several files.
fn parts(count: u32) -> Vec<(String, GgufBuilder)> {
    let whole = GgufBuilder::tiny();
    let name = |i: u32| format!("tiny-{:05}-of-{count:05}.gguf", i + 1);
    let mut parts: Vec<_> = (0..count)
        .map(|i| {
            let mut part = if i == 0 { GgufBuilder::tiny() } else { GgufBuilder::empty() };
            part.tensors.clear();
            part.set("split.no", u32_value(i));
            part.set("split.count", u32_value(count));
            (name(i), part)
        })
        .collect();
    parts[0].1.set("split.tensors.count", u32_value(whole.tensors.len() as u32));
    for (i, tensor) in whole.tensors.into_iter().enumerate() {
        parts[i % count as usize].1.tensors.push(tensor);
    }
    parts
}

/// Opens the model in these files by one of them.
fn open_parts(parts: &[(String, GgufBuilder)], which: usize) -> Result<ModelFiles, String> {
    let source = |(name, part): &(String, GgufBuilder)| Source::new(name.clone(), part.build().0);
    let open = |file: &str| Ok(parts.iter().find(|(name, _)| name == file).map(source));
    ModelFiles::from_gguf_part(source(&parts[which]), &open).map_err(|error| error.to_string())
}

#[test]
fn a_model_in_several_gguf_files_is_opened_by_any_of_them() {
    let expected = tensors(&open_gguf(&GgufBuilder::tiny()).unwrap());
    let three = parts(3);
    for which in 0..3 {
        let model = open_parts(&three, which).unwrap();
        assert_eq!(tensors(&model), expected, "{which}");
        assert_eq!(model.name(), three[0].0);
    }
    let with = |change: fn(&mut Vec<(String, GgufBuilder)>)| {
        let mut parts = parts(3);
        change(&mut parts);
        open_parts(&parts, 0).unwrap_err()
    };
    let missing = with(|parts| drop(parts.remove(1)));
    assert_says(
        &missing,
        &["tiny-00001-of-00003.gguf: split.count: is 3", "no tiny-00002-of-00003"],
    );
    let swapped = with(|parts| parts[2].1.set("split.no", u32_value(1)));
    assert_says(&swapped, &["tiny-00003-of-00003.gguf: split.no: is 1, and should be 2"]);
    let stray = with(|parts| parts[1].1.remove("split.count"));
    assert_says(&stray, &["tiny-00002-of-00003.gguf: split.count: is missing"]);
    let twice = with(|parts| {
        let tensor = parts[0].1.tensors[0].clone();
        parts[1].1.tensors.push(tensor);
    });
    assert_says(&twice, &["token_embd.weight: is in another file"]);
    let short = with(|parts| drop(parts[2].1.tensors.pop()));
    assert_says(&short, &["split.tensors.count: is 11, but the files have 10"]);
    let renamed = with(|parts| parts[0].0 = "tiny.gguf".into());
    assert_says(&renamed, &["not named like NAME-00001-of-00003.gguf"]);

    // On disk, too.
    let folder = tempfile::tempdir().unwrap();
    for (name, part) in &three {
        std::fs::write(folder.path().join(name), part.build().0).unwrap();
    }
    let model = ModelFiles::open(&folder.path().join(&three[1].0)).unwrap();
    assert_eq!(tensors(&model), expected);
}
