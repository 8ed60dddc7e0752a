//! GGUF models in several files, `NAME-00001-of-00003.gguf` and so on: the first has the metadata, each has
//! some of the tensors.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use super::Gguf;
use crate::weights::{Source, WeightsError};

const COUNT: &str = "split.count";
const NUMBER: &str = "split.no";
const TENSORS: &str = "split.tensors.count";
/// Number of digits of a number in the name of a file.
const DIGITS: usize = 5;

/// Opens the file of this name in the folder of the model; `None` if there is none.
pub(in crate::weights) type OpenPart<'a> = &'a dyn Fn(&str) -> Result<Option<Source>, WeightsError>;

/// Returns the model of which `part` is a file: itself, if it is whole.
pub(in crate::weights) fn join(part: Gguf, open: OpenPart<'_>) -> Result<Gguf, WeightsError> {
    let count = part.metadata.count(COUNT)?.unwrap_or(1);
    if count <= 1 {
        return Ok(part);
    }
    let source = Arc::clone(&part.source);
    let wrong = |reason: String| source.malformed(COUNT, reason);
    let (stem, number) = name_parts(source.name(), count).ok_or_else(|| {
        wrong(format!(
            "is {count}, but the file is not named like NAME-00001-of-{count:05}.gguf, so the others cannot \
             be found"
        ))
    })?;
    let parse = |number: u64| -> Result<Gguf, WeightsError> {
        let name = file_name(&stem, number, count);
        let source = open(&name)?.ok_or_else(|| {
            wrong(format!("is {count}, but there is no {name}; is the download complete?"))
        })?;
        Gguf::parse(Arc::new(source))
    };
    let mut whole = if number == 1 { part } else { parse(1)? };
    check_part(&whole, 1, count)?;
    for number in 2..=count {
        let part = parse(number)?;
        check_part(&part, number, count)?;
        whole.tensors.extend(part.tensors);
    }
    let mut seen = HashSet::new();
    if let Some(twice) = whole.tensors.iter().find(|tensor| !seen.insert(&tensor.info.name)) {
        return Err(twice.malformed("is in another file of the model too"));
    }
    match whole.metadata.count(TENSORS)? {
        Some(tensors) if tensors != whole.tensors.len() as u64 => {
            let reason = format!("is {tensors}, but the files have {}", whole.tensors.len());
            Err(whole.source.malformed(TENSORS, reason))
        }
        _ => Ok(whole),
    }
}

/// Fails unless the file is this part of the model. Numbers in files begin at 0.
fn check_part(part: &Gguf, number: u64, count: u64) -> Result<(), WeightsError> {
    for (key, expected) in [(NUMBER, number - 1), (COUNT, count)] {
        let found = part.metadata.count(key)?;
        if found != Some(expected) {
            let found = found.map_or("is missing".to_owned(), |found| format!("is {found}"));
            let reason = format!("{found}, and should be {expected} in this file");
            return Err(part.source.malformed(key, reason));
        }
    }
    Ok(())
}

/// Returns what stands before the numbers in the name of a file, and its number from 1.
fn name_parts(path: &str, count: u64) -> Option<(String, u64)> {
    let name = Path::new(path).file_name()?.to_str()?;
    let rest = name.strip_suffix(&format!("-of-{count:05}.gguf"))?;
    let (stem, number) = rest.split_at_checked(rest.len().checked_sub(DIGITS)?)?;
    let number = number.parse().ok().filter(|number| (1..=count).contains(number))?;
    Some((stem.strip_suffix('-')?.to_owned(), number))
}

fn file_name(stem: &str, number: u64, count: u64) -> String {
    format!("{stem}-{number:05}-of-{count:05}.gguf")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_names() {
        let parts = |name: &str| name_parts(name, 3);
        assert_eq!(parts("/models/a-b-00002-of-00003.gguf"), Some(("a-b".into(), 2)));
        assert_eq!(file_name("a-b", 2, 3), "a-b-00002-of-00003.gguf");
        for other in [
            "a.gguf",
            "a-00002-of-00004.gguf",
            "a-00004-of-00003.gguf",
            "a-00000-of-00003.gguf",
            "a-x0001-of-00003.gguf",
            "00001-of-00003.gguf",
            "a-00001-of-00003.bin",
            "é1-of-00003.gguf",
        ] {
            assert_eq!(parts(other), None, "{other}");
        }
    }
}
