//! Entry point for `scripts/fuzz`: a configuration file without the file system.

use std::path::Path;

use clap::Command;

use super::{
    Loaded, config_flag, parse_file, print, print_config_flag, with_sources, without_environment,
};

/// Reads `text` as the file of `command`. Returns the configuration as `--print-config` prints it,
/// or the error.
pub fn print(command: Command, text: &str) -> Result<String, String> {
    let command = without_environment(command.arg(config_flag()).arg(print_config_flag()));
    let file = parse_file(Path::new("fuzz.toml"), text, &command);
    let file = file.map_err(|error| error.to_string())?;
    let mut command = with_sources(command, None, &file);
    let matches = command.try_get_matches_from_mut(["fuzz"]);
    let matches = matches.map_err(|error| error.to_string())?;
    Ok(print::toml(&Loaded { command, matches, file }))
}
