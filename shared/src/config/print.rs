//! Prints the effective configuration as TOML that `--config` can read.

use std::{any::TypeId, fmt::Write};

use clap::{Arg, ArgAction, ArgMatches, parser::ValueSource};

use super::{Loaded, Secret, is_key};

/// An option, and the matches of its command.
type ParsedOption<'a> = (&'a Arg, &'a ArgMatches);

/// Returns all options of the invoked command as TOML, each with its help, its source and its
/// value.
pub(super) fn toml(loaded: &Loaded) -> String {
    let mut text = String::new();
    for (heading, options) in by_heading(loaded) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# {heading}\n");
        for (arg, matches) in options {
            option(&mut text, loaded, matches, arg);
        }
    }
    text
}

/// Returns the options of the subcommand and its parents, grouped by help heading in the order of
/// `--help`.
fn by_heading(loaded: &Loaded) -> Vec<(&str, Vec<ParsedOption<'_>>)> {
    let mut levels = vec![(&loaded.command, &loaded.matches)];
    while let Some(&(command, matches)) = levels.last()
        && let Some((name, sub_matches)) = matches.subcommand()
        && let Some(sub) = command.find_subcommand(name)
    {
        levels.push((sub, sub_matches));
    }
    let mut groups: Vec<(&str, Vec<ParsedOption<'_>>)> = Vec::new();
    for (command, matches) in levels.into_iter().rev() {
        for arg in command.get_arguments().filter(|arg| is_key(arg)) {
            let mut known = groups.iter().flat_map(|(_, options)| options);
            if known.any(|(known, _)| known.get_long() == arg.get_long()) {
                // A global option is in every command, with the same value.
                continue;
            }
            let heading = arg.get_help_heading().unwrap_or("Options");
            match groups.iter_mut().find(|(known, _)| *known == heading) {
                Some((_, options)) => options.push((arg, matches)),
                None => groups.push((heading, vec![(arg, matches)])),
            }
        }
    }
    groups
}

fn option(text: &mut String, loaded: &Loaded, matches: &ArgMatches, arg: &Arg) {
    let key = arg.get_long().unwrap_or_default();
    if let Some(help) = arg.get_help() {
        let _ = writeln!(text, "# {}", help.to_string().replace('\n', " "));
    }
    let id = arg.get_id().as_str();
    let many = matches!(arg.get_action(), ArgAction::Append);
    let raw: Option<Vec<_>> = matches.get_raw(id).map(|raw| raw.map(|v| v.to_str()).collect());
    let _ = match raw.map(|values| values.into_iter().collect::<Option<Vec<&str>>>()) {
        None if many => writeln!(text, "# not set\n# {key} = []\n"),
        None => writeln!(text, "# not set\n# {key} = \"\"\n"),
        Some(_) if is_secret(arg) => {
            // A comment, since the value that is read back would be wrong.
            let from = source(loaded, matches, arg);
            writeln!(text, "# {from}, not shown\n# {key} = \"***\"\n")
        }
        Some(None) => writeln!(text, "# not UTF-8, which a file cannot express\n# {key} = \"\"\n"),
        Some(Some(values)) => {
            let from = source(loaded, matches, arg);
            writeln!(text, "# {from}\n{key} = {}\n", value(&values, many))
        }
    };
}

/// Returns whether the value of the option must not be shown.
fn is_secret(arg: &Arg) -> bool {
    arg.get_value_parser().type_id() == TypeId::of::<Secret>()
}

/// Describes where a value came from.
fn source(loaded: &Loaded, matches: &ArgMatches, arg: &Arg) -> String {
    let key = arg.get_long().unwrap_or_default();
    match (matches.value_source(arg.get_id().as_str()), loaded.file.get(key)) {
        (Some(ValueSource::CommandLine), _) => format!("from --{key}"),
        (Some(ValueSource::EnvVariable), _) => {
            let name = arg.get_env().unwrap_or_default().to_string_lossy();
            format!("from the environment, {name}")
        }
        (_, Some(entry)) => format!("from {}:{}", loaded.file.path.display(), entry.line),
        _ => "the default".into(),
    }
}

fn value(values: &[&str], many: bool) -> String {
    let each: Vec<_> = values.iter().map(|value| scalar(value)).collect();
    match each.as_slice() {
        [one] if !many => one.clone(),
        _ => format!("[{}]", each.join(", ")),
    }
}

/// Formats the text as a number or a boolean if it is in canonical form, else as a string.
fn scalar(text: &str) -> String {
    let integer = text.parse::<i64>().is_ok_and(|n| n.to_string() == text);
    let decimal = text.parse::<f64>().is_ok_and(|n| n.to_string() == text) && text.contains('.');
    if integer || decimal || matches!(text, "true" | "false") {
        text.to_owned()
    } else {
        toml::Value::from(text).to_string()
    }
}
