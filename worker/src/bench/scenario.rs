//! Typical workloads, given by the lengths of prompt and response.

use clap::ValueEnum;

/// A workload of a single sequence.
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
    /// All scenarios, ordered by prompt length.
    pub(super) const ALL: [Self; 4] = [Self::Short, Self::Medium, Self::Code, Self::Long];

    /// Name on the command line and in rows.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Medium => "medium",
            Self::Code => "code",
            Self::Long => "long",
        }
    }

    /// Prompt tokens and output tokens.
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
            let (prompt, output) = scenario.lengths();
            assert_eq!(numbers, [prompt, output], "{help}");
        }
    }
}
