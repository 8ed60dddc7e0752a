//! What a line of input says.

/// The commands, in one line.
pub(super) const HELP: &str =
    "Commands: /system TEXT, /new, /save FILE, /help, /quit. Ctrl-C stops a response.";

/// A line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    Empty,
    Message(&'a str),
    /// Sets the system message, or removes it.
    System(&'a str),
    /// Begins a new conversation.
    New,
    /// Writes the conversation to a file.
    Save(&'a str),
    Help,
    Quit,
    Unknown(&'a str),
}

impl<'a> Line<'a> {
    pub(super) fn parse(line: &'a str) -> Self {
        let line = line.trim();
        if !line.starts_with('/') {
            return if line.is_empty() { Self::Empty } else { Self::Message(line) };
        }
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (command, rest.trim()) {
            ("/system", text) => Self::System(text),
            ("/new", "") => Self::New,
            ("/save", path) if !path.is_empty() => Self::Save(path),
            ("/help", "") => Self::Help,
            ("/quit" | "/exit", "") => Self::Quit,
            _ => Self::Unknown(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        for (line, parsed) in [
            ("  ", Line::Empty),
            (" A fox / a hare ", Line::Message("A fox / a hare")),
            ("/system  Be brief. ", Line::System("Be brief.")),
            ("/system", Line::System("")),
            ("/save a file.json", Line::Save("a file.json")),
            ("/save", Line::Unknown("/save")),
            ("/new", Line::New),
            ("/quit", Line::Quit),
            ("/help", Line::Help),
            ("/nothing at all", Line::Unknown("/nothing at all")),
        ] {
            assert_eq!(Line::parse(line), parsed, "{line:?}");
        }
    }
}
