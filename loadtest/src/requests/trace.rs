//! Replay of a recorded trace: when requests arrived, and how long their prompts and responses were.
//!
//! Formats are known by the names of their columns or fields, not by the name of the file: the
//! traces of Azure (`TIMESTAMP,ContextTokens,GeneratedTokens`), BurstGPT (`Timestamp`, `Request
//! tokens`, `Response tokens`) and Mooncake (JSON lines with `timestamp`, `input_length`,
//! `output_length` and `hash_ids`, which say what prompts have in common).

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    time::Duration,
};

use prost_types::Timestamp;
use serde::Deserialize;
use stoker_shared::cli::FileError;

use crate::{error::Error, requests::shape::MAX_LENGTH};

/// Tokens of a prompt for which one of Mooncake's hashes stands.
const HASHED_TOKENS: f64 = 512.0;
const FORMATS: &str = "the columns TIMESTAMP,ContextTokens,GeneratedTokens (Azure), \
                       Timestamp,Request tokens,Response tokens (BurstGPT), or JSON lines with \
                       timestamp, input_length, output_length (Mooncake)";

/// The requests of a trace, by arrival.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// The requests.
    pub requests: Vec<TracedRequest>,
    /// Tokens for which one of the `hashes` stands.
    pub hashed_tokens: u32,
    /// Number of requests without a prompt or a response, which are left out.
    pub left_out: u64,
}

/// One request of a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct TracedRequest {
    /// Time after the first one.
    pub at: Duration,
    /// Tokens of its prompt.
    pub input: u32,
    /// Tokens of its response.
    pub output: u32,
    /// Hashes of the blocks of its prompt: equal ones stand for equal tokens.
    pub hashes: Vec<u64>,
}

/// How a trace is changed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// How many times as fast requests arrive.
    pub speed: f64,
    /// Factor of all lengths.
    pub length: f64,
}

/// A request as it is recorded. The time is in seconds.
struct Recorded {
    /// Line in the file.
    line: u64,
    seconds: f64,
    input: u64,
    output: u64,
    hashes: Vec<u64>,
}

/// Reads the trace in the file at `path`.
pub fn read(path: &Path, scale: Scale) -> Result<Trace, Error> {
    let flag = "--trace";
    let file = fs::File::open(path).map_err(FileError::at(flag, path))?;
    let wrong = |why: String| Error::Usage(format!("{flag} {}: {why}", path.display()));
    let recorded = parse(BufReader::new(file)).map_err(wrong)?;
    scaled(recorded, scale).map_err(wrong)
}

fn parse(mut file: impl BufRead) -> Result<Vec<Recorded>, String> {
    let mut first = String::new();
    let mut lines_before = 0;
    while first.trim().is_empty() {
        first.clear();
        let read = file.read_line(&mut first).map_err(|error| format!("line 1: {error}"))?;
        if read == 0 {
            return Err(format!("is empty; it needs {FORMATS}"));
        }
        lines_before += 1;
    }
    // Some programs write a byte order mark.
    let first = first.trim_start_matches('\u{feff}').trim();
    if first.starts_with('{') {
        let rest = file.lines().zip(lines_before + 1..);
        let all = std::iter::once((Ok(first.to_owned()), lines_before)).chain(rest);
        return all
            .map(|(line, number)| {
                let at = |why: String| format!("line {number}: {why}");
                let line = line.map_err(|error| at(error.to_string()))?;
                if line.trim().is_empty() {
                    return Ok(None);
                }
                mooncake(&line, number).map(Some).map_err(at)
            })
            .filter_map(Result::transpose)
            .collect();
    }
    table(first, lines_before, file)
}

fn mooncake(line: &str, number: u64) -> Result<Recorded, String> {
    #[derive(Deserialize)]
    struct Line {
        /// Milliseconds.
        timestamp: f64,
        input_length: u64,
        output_length: u64,
        #[serde(default)]
        hash_ids: Vec<u64>,
    }
    let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
    Ok(Recorded {
        line: number,
        seconds: line.timestamp / 1e3,
        input: line.input_length,
        output: line.output_length,
        hashes: line.hash_ids,
    })
}

/// Reads the rows below `header`.
fn table(header: &str, header_line: u64, file: impl BufRead) -> Result<Vec<Recorded>, String> {
    let names: Vec<String> =
        header.split(',').map(|name| name.trim().trim_matches('"').to_ascii_lowercase()).collect();
    let column = |name: &str| names.iter().position(|other| other == name);
    let columns = ["contexttokens", "generatedtokens"].map(column);
    let columns = match columns {
        [Some(input), Some(output)] => Some((input, output)),
        _ => column("request tokens").zip(column("response tokens")),
    };
    let (Some(time), Some((input, output))) = (column("timestamp"), columns) else {
        return Err(format!("line {header_line}: unknown columns {header:?}; it needs {FORMATS}"));
    };
    let mut rows = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(file);
    let mut recorded = Vec::new();
    for row in rows.records() {
        let row = row.map_err(|error| error.to_string())?;
        let line = header_line + row.position().map_or(0, csv::Position::line);
        let field = |at: usize| {
            row.get(at).ok_or_else(|| format!("line {line}: column {:?} is missing", names[at]))
        };
        let tokens = |at: usize| {
            let text = field(at)?;
            text.parse().map_err(|_| format!("line {line}: {text:?} is no number of tokens"))
        };
        let seconds = seconds(field(time)?).map_err(|why| format!("line {line}: {why}"))?;
        let (input, output) = (tokens(input)?, tokens(output)?);
        recorded.push(Recorded { line, seconds, input, output, hashes: Vec::new() });
    }
    Ok(recorded)
}

/// Parses seconds, or a date and a time of day.
fn seconds(text: &str) -> Result<f64, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Ok(seconds);
    }
    let rfc3339 = format!("{}Z", text.trim_end_matches('Z').replacen(' ', "T", 1));
    let at: Timestamp = rfc3339.parse().map_err(|_| {
        format!("{text:?} is no time; write seconds, or a date and a time of day in UTC")
    })?;
    Ok(at.seconds as f64 + f64::from(at.nanos) / 1e9)
}

fn scaled(mut recorded: Vec<Recorded>, scale: Scale) -> Result<Trace, String> {
    let all = recorded.len() as u64;
    recorded.retain(|one| one.input > 0 && one.output > 0 && one.seconds.is_finite());
    let left_out = all - recorded.len() as u64;
    recorded.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let Some(first) = recorded.first().map(|one| one.seconds) else {
        return Err("has no request with a prompt and a response".into());
    };
    let requests = recorded.into_iter().map(|one| {
        let tokens = |count: u64| {
            let scaled = (count as f64 * scale.length).round().max(1.0);
            if scaled > f64::from(MAX_LENGTH) {
                return Err(format!(
                    "line {}: {count} tokens are more than {MAX_LENGTH}",
                    one.line
                ));
            }
            Ok(scaled as u32)
        };
        let at = Duration::try_from_secs_f64((one.seconds - first) / scale.speed);
        Ok(TracedRequest {
            at: at.map_err(|_| "its times are too far apart".to_owned())?,
            input: tokens(one.input)?,
            output: tokens(one.output)?,
            hashes: one.hashes,
        })
    });
    Ok(Trace {
        requests: requests.collect::<Result<_, String>>()?,
        hashed_tokens: (HASHED_TOKENS * scale.length).round().max(1.0) as u32,
        left_out,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const AS_IT_IS: Scale = Scale { speed: 1.0, length: 1.0 };

    fn read_text(text: &str, scale: Scale) -> Result<Trace, String> {
        scaled(parse(text.as_bytes())?, scale)
    }

    fn request(millis: u64, input: u32, output: u32, hashes: &[u64]) -> TracedRequest {
        TracedRequest { at: Duration::from_millis(millis), input, output, hashes: hashes.into() }
    }

    #[test]
    fn the_traces_of_three_projects_are_read() {
        let azure = "\u{feff}TIMESTAMP,ContextTokens,GeneratedTokens\r\n\
                     2023-11-16 23:59:59.5000000,374,44\r\n2023-11-17 00:00:00.0000000,396,109\r\n";
        let expected = [request(0, 374, 44, &[]), request(500, 396, 109, &[])];
        assert_eq!(read_text(azure, AS_IT_IS).unwrap().requests, expected);

        let burst = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n\
                     5,ChatGPT,472,18,490,\"Conversation log\"\n7,GPT-4,9,0,9,API log\n\
                     45,GPT-4,1087,230,1317,Conversation log\n";
        let trace = read_text(burst, AS_IT_IS).unwrap();
        assert_eq!(trace.requests, [request(0, 472, 18, &[]), request(40_000, 1_087, 230, &[])]);
        assert_eq!(trace.left_out, 1, "it has no response");

        let mooncake = "\n{\"timestamp\": 3000, \"input_length\": 600, \"output_length\": 6, \
                        \"hash_ids\": [0, 7]}\n\n{\"timestamp\": 1000, \"input_length\": 5, \
                        \"output_length\": 4}\n";
        let trace = read_text(mooncake, Scale { speed: 4.0, length: 0.5 }).unwrap();
        assert_eq!(trace.requests, [request(0, 3, 2, &[]), request(500, 300, 3, &[0, 7])]);
        assert_eq!(trace.hashed_tokens, 256);
    }

    #[test]
    fn errors_name_the_line_and_what_is_wrong() {
        for (text, parts) in [
            ("", &["is empty", "ContextTokens"][..]),
            ("\r\n \n", &["is empty"]),
            ("a,b\n1,2\n", &["line 1", "unknown columns \"a,b\"", "input_length"]),
            ("TIMESTAMP,ContextTokens\n", &["unknown columns"]),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\n", &["has no request"]),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,3\n1,-2,3\n", &["line 3", "\"-2\""]),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,2,3\n", &["line 2", "\"noon\""]),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,2\n", &["line 2", "generatedtokens"]),
            (
                "\nTimestamp,Request tokens,Response tokens\n1,2,3\n1,2,10000001\n",
                &["line 4", "10000001 tokens"],
            ),
            ("{\"timestamp\": 0, \"input_length\": 3}\n", &["line 1", "output_length"]),
            ("{\"timestamp\": 0, \"input_length\": 3, \"output_length\": 1}\nx", &["line 2"]),
        ] {
            let error = read_text(text, AS_IT_IS).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "{text:?}: {part:?} is missing: {error}");
            }
        }
        let error = read(Path::new("/no/such.csv"), AS_IT_IS).unwrap_err().to_string();
        assert!(error.contains("--trace /no/such.csv"), "{error}");
    }
}
