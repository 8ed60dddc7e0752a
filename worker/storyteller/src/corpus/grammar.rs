//! The language of the files in `grammar/`: templates with choices, slots and rules.
//!
//! - `[red|blue|]`: one of the options, which may nest and may be empty
//! - `{hero}`: the value of a slot; `{Hero}`: the same, capitalised; `{a thing}`: the same after
//!   `a` or `an`
//! - `@oneday`: one line of the rule of that name
//!
//! A plot is a sequence of blocks, and a story has one line of each block. A block that starts with
//! `?` is included with probability 0.5. `--` starts a paragraph. `let a, b = x ; y | z ; w`
//! chooses one row and sets its slots.

use std::collections::BTreeMap;

use crate::rng::SeededRng;

/// The values of the slots of one story.
pub type Slots = BTreeMap<String, String>;

/// An error in a grammar file.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum GrammarError {
    /// A bracket or brace is not closed, or not opened.
    #[error("unbalanced {0:?} in {1:?}")]
    Unbalanced(char, String),
    /// A slot is never set.
    #[error("the slot {{{0}}} is never set")]
    UnknownSlot(String),
    /// A rule is not defined.
    #[error("the rule @{0} is not defined")]
    UnknownRule(String),
    /// A row of a `let` does not have one value per name.
    #[error("malformed let: {0:?}")]
    MalformedLet(String),
}

/// Rules that every plot may use.
#[derive(Debug, Clone, Default)]
pub struct Rules(BTreeMap<String, Vec<Vec<Node>>>);

/// One plot: its own slots, and its blocks in order.
#[derive(Debug, Clone, Default)]
pub struct Plot {
    lets: Vec<Let>,
    blocks: Vec<Block>,
}

#[derive(Debug, Clone)]
struct Let {
    names: Vec<String>,
    rows: Vec<Vec<Vec<Node>>>,
}

#[derive(Debug, Clone)]
enum Block {
    Paragraph,
    Lines { optional: bool, lines: Vec<Vec<Node>> },
}

#[derive(Debug, Clone)]
enum Node {
    Text(String),
    Slot(String),
    Rule(String),
    Choice(Vec<Vec<Node>>),
}

impl Rules {
    /// Parses blocks whose first line is `name:` and whose other lines are the alternatives.
    pub fn parse(source: &str) -> Result<Self, GrammarError> {
        let mut rules = BTreeMap::new();
        for block in blocks(source) {
            let Some((head, lines)) = block.split_first() else { continue };
            let lines = lines.iter().map(|line| parse(line)).collect::<Result<Vec<_>, _>>()?;
            rules.insert(head.trim_end_matches(':').to_owned(), lines);
        }
        Ok(Self(rules))
    }
}

impl Plot {
    /// Parses one plot file.
    pub fn parse(source: &str) -> Result<Self, GrammarError> {
        let mut plot = Self::default();
        for block in blocks(source) {
            match block.as_slice() {
                ["--"] => plot.blocks.push(Block::Paragraph),
                [first, ..] if first.starts_with("let ") => {
                    for line in block {
                        plot.lets.push(Let::parse(line)?);
                    }
                }
                lines => {
                    let optional = lines[0] == "?";
                    let lines = lines[usize::from(optional)..].iter().map(|line| parse(line));
                    plot.blocks
                        .push(Block::Lines { optional, lines: lines.collect::<Result<_, _>>()? });
                }
            }
        }
        Ok(plot)
    }

    /// Generates one story of this plot. `slots` holds the cast and receives the plot's own slots.
    pub fn generate(
        &self,
        rules: &Rules,
        slots: &mut Slots,
        rng: &mut SeededRng,
    ) -> Result<String, GrammarError> {
        for choice in &self.lets {
            let row = rng.pick(&choice.rows);
            for (name, value) in choice.names.iter().zip(row) {
                let value = Expander { rules, slots, rng }.expand(value)?;
                slots.insert(name.clone(), value);
            }
        }
        let mut story = String::new();
        for block in &self.blocks {
            match block {
                Block::Paragraph => story.push_str("\n\n"),
                Block::Lines { optional: true, .. } if rng.chance(0.5) => {}
                Block::Lines { lines, .. } => {
                    let line = rng.pick(lines);
                    let line = Expander { rules, slots, rng }.expand(line)?;
                    if !story.is_empty() && !story.ends_with('\n') {
                        story.push(' ');
                    }
                    story.push_str(&capitalised(line.trim()));
                }
            }
        }
        Ok(sentences_capitalised(&story))
    }
}

impl Let {
    fn parse(line: &str) -> Result<Self, GrammarError> {
        let malformed = || GrammarError::MalformedLet(line.to_owned());
        let (names, rows) =
            line.trim_start_matches("let ").split_once('=').ok_or_else(malformed)?;
        let names: Vec<String> = names.split(',').map(|name| name.trim().to_owned()).collect();
        let mut parsed = Vec::new();
        for row in split_outside_brackets(rows) {
            let values: Vec<_> =
                row.split(';').map(|value| parse(value.trim())).collect::<Result<_, _>>()?;
            if values.len() != names.len() {
                return Err(malformed());
            }
            parsed.push(values);
        }
        Ok(Self { names, rows: parsed })
    }
}

/// Expands templates to text.
struct Expander<'a> {
    rules: &'a Rules,
    slots: &'a Slots,
    rng: &'a mut SeededRng,
}

impl Expander<'_> {
    fn expand(&mut self, nodes: &[Node]) -> Result<String, GrammarError> {
        let mut text = String::new();
        for node in nodes {
            match node {
                Node::Text(words) => text.push_str(words),
                Node::Slot(name) => text.push_str(&self.slot(name)?),
                Node::Choice(options) => {
                    let option = self.rng.pick(options);
                    text.push_str(&self.expand(option)?);
                }
                Node::Rule(name) => {
                    let lines = self
                        .rules
                        .0
                        .get(name)
                        .ok_or_else(|| GrammarError::UnknownRule(name.clone()))?;
                    let line = self.rng.pick(lines);
                    text.push_str(&self.expand(line)?);
                }
            }
        }
        Ok(text)
    }

    fn slot(&self, name: &str) -> Result<String, GrammarError> {
        let unknown = || GrammarError::UnknownSlot(name.to_owned());
        if let Some(noun) = name.strip_prefix("a ").or_else(|| name.strip_prefix("A ")) {
            let noun = self.slot(noun)?;
            let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
            let phrase = format!("{article} {noun}");
            return Ok(if name.starts_with('A') { capitalised(&phrase) } else { phrase });
        }
        match self.slots.get(name) {
            Some(value) => Ok(value.clone()),
            None => self
                .slots
                .get(&name.to_lowercase())
                .map(|value| capitalised(value))
                .ok_or_else(unknown),
        }
    }
}

/// Returns the text with its first letter in upper case. Quotation marks may precede the letter.
pub fn capitalised(text: &str) -> String {
    let start = text.find(|c: char| c.is_alphabetic()).unwrap_or(0);
    let (quote, rest) = text.split_at(start);
    let mut letters = rest.chars();
    match letters.next() {
        Some(first) if quote.chars().all(|c| c == '"') => {
            format!("{quote}{}{}", first.to_uppercase(), letters.as_str())
        }
        _ => text.to_owned(),
    }
}

/// Returns the text with a capital letter after each full stop, question mark and exclamation mark.
fn sentences_capitalised(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for c in text.chars() {
        let starts = [". ", "! ", "? ", ".\" "].iter().any(|end| result.ends_with(end));
        match starts {
            true => result.extend(c.to_uppercase()),
            false => result.push(c),
        }
    }
    result
}

/// Splits the source into blocks of lines at blank lines, and removes comments.
fn blocks(source: &str) -> Vec<Vec<&str>> {
    let mut blocks = vec![Vec::new()];
    for line in source.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        match (line.is_empty(), blocks.last_mut()) {
            (false, Some(block)) => block.push(line),
            _ => blocks.push(Vec::new()),
        }
    }
    blocks.retain(|block| !block.is_empty());
    blocks
}

/// Splits at the `|` that are not inside brackets.
fn split_outside_brackets(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0usize, 0);
    for (i, c) in text.char_indices() {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            '|' if depth == 0 => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Parses one template.
fn parse(text: &str) -> Result<Vec<Node>, GrammarError> {
    let unbalanced = |c| GrammarError::Unbalanced(c, text.to_owned());
    let (mut nodes, mut rest) = (Vec::new(), text);
    while let Some(start) = rest.find(['[', ']', '{', '}', '@']) {
        if start > 0 {
            nodes.push(Node::Text(rest[..start].to_owned()));
        }
        let mark = rest[start..].chars().next().unwrap_or(']');
        let after = &rest[start + 1..];
        rest = match mark {
            '{' => {
                let (name, after) = after.split_once('}').ok_or_else(|| unbalanced('{'))?;
                nodes.push(Node::Slot(name.to_owned()));
                after
            }
            '@' => {
                let end = after.find(|c: char| !c.is_alphanumeric()).unwrap_or(after.len());
                nodes.push(Node::Rule(after[..end].to_owned()));
                &after[end..]
            }
            '[' => {
                let end = matching_bracket(after).ok_or_else(|| unbalanced('['))?;
                let options = split_outside_brackets(&after[..end]);
                nodes.push(Node::Choice(options.into_iter().map(parse).collect::<Result<_, _>>()?));
                &after[end + 1..]
            }
            stray => return Err(unbalanced(stray)),
        };
    }
    if !rest.is_empty() {
        nodes.push(Node::Text(rest.to_owned()));
    }
    Ok(nodes)
}

/// Returns the position of the bracket that closes the one before `text`.
fn matching_bracket(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (i, c) in text.char_indices() {
        match c {
            '[' => depth += 1,
            ']' if depth == 0 => return Some(i),
            ']' => depth -= 1,
            _ => {}
        }
    }
    None
}
