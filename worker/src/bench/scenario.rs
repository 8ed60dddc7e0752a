//! What people do with a model, as lengths: of the prompt, and of the answer.

use clap::ValueEnum;

/// One sequence by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// A question: 32 tokens in, 64 out
    Short,
    /// A conversation: 256 in, 128 out
    Medium,
    /// A file to continue: 512 in, 256 out
    Code,
    /// A document to summarise: 1536 in, 128 out
    Long,
}

impl Scenario {
    /// All of them, the shortest prompt first.
    pub(super) const ALL: [Self; 4] = [Self::Short, Self::Medium, Self::Code, Self::Long];

    /// As the command line and rows name it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Medium => "medium",
            Self::Code => "code",
            Self::Long => "long",
        }
    }

    /// Tokens of the prompt, and of the answer.
    pub(super) const fn lengths(self) -> (usize, usize) {
        match self {
            Self::Short => (32, 64),
            Self::Medium => (256, 128),
            Self::Code => (512, 256),
            Self::Long => (1536, 128),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_states_the_lengths() {
        for scenario in Scenario::ALL {
            let value = scenario.to_possible_value();
            let help =
                value.and_then(|v| v.get_help().map(ToString::to_string)).unwrap_or_default();
            let numbers = help.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
            let numbers: Vec<_> = numbers.filter_map(|n| n.parse::<usize>().ok()).collect();
            let (prompt, answer) = scenario.lengths();
            assert_eq!(numbers, [prompt, answer], "{help}");
        }
    }
}
