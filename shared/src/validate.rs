//! Validation of requests that needs no model. The router validates early, and workers validate
//! again.

use stoker_proto::v1::{
    GenerateRequest, generate_request::Input, guided::Form, stop_condition::Kind,
};

use crate::error::{MAX_VIOLATIONS, ServiceError, Violation};

/// Maximum number of stop conditions of a request.
pub const MAX_STOP_CONDITIONS: usize = 16;
/// Maximum length of a stop string, in bytes.
pub const MAX_STOP_BYTES: usize = 256;
/// Maximum number of choices of a request.
pub const MAX_SEQUENCES: u32 = 16;
/// Maximum number of candidates per log probability.
pub const MAX_TOP_CANDIDATES: u32 = 20;
/// Maximum length of a request id, in characters.
pub const MAX_REQUEST_ID: usize = 128;
/// Maximum length of a cache salt, in characters.
pub const MAX_CACHE_SALT: usize = 128;
/// Maximum length of the name of a model or a worker, in bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// Maximum number of tokens with a logit bias.
pub const MAX_LOGIT_BIAS: usize = 1024;
/// Priority of a request that has none. 0 is the most urgent.
pub const DEFAULT_PRIORITY: u32 = 100;
/// Maximum priority value, which is the least urgent.
pub const MAX_PRIORITY: u32 = 1000;

/// Part of the error of a prompt that is too long for the model. OpenAI's API has a code for it.
pub const LEAVES_NO_ROOM: &str = "leave room for a response in a context of";

/// Validates every field with limits of its own, and reports all violations together.
pub fn generate(request: &GenerateRequest) -> Result<(), ServiceError> {
    let mut violations = Violations::default();
    identity(request, &mut violations);
    input(request, &mut violations);
    sampling(request, &mut violations);
    stopping(request, &mut violations);
    response(request, &mut violations);
    if violations.0.is_empty() { Ok(()) } else { Err(ServiceError::Invalid(violations.0)) }
}

/// Violations, up to [`MAX_VIOLATIONS`].
#[derive(Default)]
struct Violations(Vec<Violation>);

impl Violations {
    fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        // An error is sent in HTTP headers, whose size is limited.
        if self.0.len() >= MAX_VIOLATIONS {
            return;
        }
        self.0.push(Violation { field: field.into(), description: description.into() });
    }

    /// Adds a violation unless `value` is absent or lies between `low` (excluded if `open`) and
    /// `high`.
    fn range(&mut self, field: &str, value: Option<f32>, low: f32, open: bool, high: f32) {
        let Some(value) = value else { return };
        // NaN fails both comparisons, so it is never within.
        let within = (if open { value > low } else { value >= low }) && value <= high;
        if !within {
            let from = if open { "above" } else { "at least" };
            self.add(field, format!("{value} is not {from} {low} and at most {high}"));
        }
    }
}

/// Validates the name of a model or a worker with the rules for names in messages. For
/// `value_parser`.
pub fn name(text: &str) -> Result<String, String> {
    match name_violation(text) {
        None if text.is_empty() => Err("is empty; give at least one character".into()),
        None => Ok(text.to_owned()),
        Some(violation) => Err(violation),
    }
}

fn name_violation(text: &str) -> Option<String> {
    if text.len() > MAX_NAME_BYTES {
        return Some(format!("{} bytes; at most {MAX_NAME_BYTES}", text.len()));
    }
    let control = text.chars().find(|c| c.is_control())?;
    Some(format!("has the control character {control:?}; leave it out"))
}

/// Returns the priority of a request.
pub fn priority(request: &GenerateRequest) -> u32 {
    request.priority.unwrap_or(DEFAULT_PRIORITY)
}

fn identity(request: &GenerateRequest, violations: &mut Violations) {
    for (field, text, max) in [
        ("request_id", &request.request_id, MAX_REQUEST_ID),
        ("cache_salt", &request.cache_salt, MAX_CACHE_SALT),
    ] {
        if text.len() > max || !text.bytes().all(|b| b.is_ascii_graphic()) {
            let size = text.len();
            let description = format!("{size} bytes; use at most {max} printable ASCII characters");
            violations.add(field, description);
        }
    }
    if let Some(violation) = name_violation(&request.model) {
        violations.add("model", violation);
    }
    if request.priority.is_some_and(|p| p > MAX_PRIORITY) {
        let value = request.priority.unwrap_or_default();
        violations.add(
            "priority",
            format!("{value} is above {MAX_PRIORITY}, the least urgent; 0 is the most urgent"),
        );
    }
}

fn input(request: &GenerateRequest, violations: &mut Violations) {
    match &request.input {
        None => violations.add("input", "is missing; set `prompt`, `token_ids` or `chat`"),
        Some(Input::Prompt(text)) if text.is_empty() => {
            violations.add("prompt", "is empty; send at least one character");
        }
        Some(Input::TokenIds(tokens)) if tokens.ids.is_empty() => {
            violations.add("token_ids", "is empty; send at least one id");
        }
        Some(Input::Chat(chat)) if chat.messages.is_empty() => {
            violations.add("chat.messages", "is empty; send at least one message");
        }
        Some(_) => {}
    }
    if matches!(request.input, Some(Input::Chat(_))) {
        for (field, set) in [
            ("no_special_tokens", request.no_special_tokens),
            ("special_tokens_as_text", request.special_tokens_as_text),
        ] {
            if set {
                violations.add(field, "is set; it does not apply to `chat`, leave it out");
            }
        }
    }
}

fn sampling(request: &GenerateRequest, violations: &mut Violations) {
    let Some(s) = &request.sampling else { return };
    violations.range("sampling.temperature", s.temperature, 0.0, false, 100.0);
    violations.range("sampling.top_p", s.top_p, 0.0, true, 1.0);
    violations.range("sampling.min_p", s.min_p, 0.0, false, 1.0);
    violations.range("sampling.frequency_penalty", s.frequency_penalty, -2.0, false, 2.0);
    violations.range("sampling.presence_penalty", s.presence_penalty, -2.0, false, 2.0);
    violations.range("sampling.repetition_penalty", s.repetition_penalty, 0.0, true, 10.0);
    if let Some(n) = s.num_sequences.filter(|n| !(1..=MAX_SEQUENCES).contains(n)) {
        violations.add("sampling.num_sequences", format!("{n} is not from 1 to {MAX_SEQUENCES}"));
    }
    if s.logit_bias.len() > MAX_LOGIT_BIAS {
        let count = s.logit_bias.len();
        violations.add("sampling.logit_bias", format!("{count} entries; at most {MAX_LOGIT_BIAS}"));
        return;
    }
    // Sorted, since the order of a map is random but errors should be reproducible.
    let mut biased: Vec<_> = s.logit_bias.iter().collect();
    biased.sort_unstable_by_key(|(token, _)| **token);
    for (token, bias) in biased {
        let field = format!("sampling.logit_bias[{token}]");
        violations.range(&field, Some(*bias), -100.0, false, 100.0);
    }
}

fn stopping(request: &GenerateRequest, violations: &mut Violations) {
    let Some(s) = &request.stopping else { return };
    if s.max_tokens == Some(0) {
        violations.add("stopping.max_tokens", "0 is not at least 1; leave it out for no limit");
    }
    if let (Some(min), Some(max)) = (s.min_tokens, s.max_tokens)
        && min > max
    {
        violations.add("stopping.min_tokens", format!("{min} is above max_tokens, {max}"));
    }
    if s.conditions.len() > MAX_STOP_CONDITIONS {
        let count = s.conditions.len();
        violations.add(
            "stopping.conditions",
            format!("{count} conditions; at most {MAX_STOP_CONDITIONS}"),
        );
        return;
    }
    for (i, condition) in s.conditions.iter().enumerate() {
        let field = format!("stopping.conditions[{i}]");
        match &condition.kind {
            None => violations.add(field, "is empty; set `text` or `token_id`"),
            Some(Kind::Text(text)) if text.is_empty() || text.len() > MAX_STOP_BYTES => {
                violations.add(
                    field,
                    format!("{} bytes; a stop string has 1 to {MAX_STOP_BYTES}", text.len()),
                );
            }
            Some(_) => {}
        }
    }
}

fn response(request: &GenerateRequest, violations: &mut Violations) {
    if let Some(r) = request.response.filter(|r| r.top_candidates > 0) {
        let value = r.top_candidates;
        if value > MAX_TOP_CANDIDATES {
            violations
                .add("response.top_candidates", format!("{value} is above {MAX_TOP_CANDIDATES}"));
        }
        if !(r.output_logprobs || r.prompt_logprobs) {
            violations.add(
                "response.top_candidates",
                format!(
                    "{value} without log probabilities; set `output_logprobs`, `prompt_logprobs` or both"
                ),
            );
        }
    }
    if let Some(Form::Choice(choices)) = request.guided.as_ref().and_then(|g| g.form.as_ref())
        && choices.options.is_empty()
    {
        violations.add("guided.choice", "is empty; give at least one option");
    }
}

#[cfg(test)]
mod tests {
    use stoker_proto::v1::{ResponseOptions, Sampling, StopCondition, Stopping};

    use super::*;

    fn fields(request: &GenerateRequest) -> Vec<String> {
        match generate(request) {
            Ok(()) => Vec::new(),
            Err(ServiceError::Invalid(violations)) => {
                violations.into_iter().map(|v| v.field).collect()
            }
            Err(other) => vec![format!("{other:?}")],
        }
    }

    fn request(sampling: Sampling, stopping: Stopping) -> GenerateRequest {
        GenerateRequest {
            input: Some(Input::Prompt("world".into())),
            sampling: Some(sampling),
            stopping: Some(stopping),
            ..Default::default()
        }
    }

    #[test]
    fn names_of_flags_and_of_requests_have_the_same_rules() {
        for (text, rejected) in [
            ("llama", false),
            ("Meta Llama/3.1 8B", false),
            ("\u{e9}", false),
            (&*"x".repeat(MAX_NAME_BYTES), false),
            (&*"x".repeat(MAX_NAME_BYTES + 1), true),
            (&*"x".repeat(300), true),
            ("a\nb", true),
            ("\u{7f}", true),
        ] {
            assert_eq!(name(text).is_err(), rejected, "{text:?}");
            let input = Some(Input::Prompt("x".into()));
            let request = GenerateRequest { model: text.into(), input, ..Default::default() };
            assert_eq!(generate(&request).is_err(), rejected, "{text:?}");
        }
        assert!(name("").is_err(), "in a request, an empty name means the only model");
    }

    #[test]
    fn absent_fields_and_limits_pass() {
        let sampling = Sampling {
            temperature: Some(0.0),
            top_p: Some(1.0),
            min_p: Some(0.0),
            ..Default::default()
        };
        assert_eq!(fields(&request(sampling, Stopping::default())), Vec::<String>::new());
    }

    #[test]
    fn every_invalid_field_is_named() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, 1e30] {
            let sampling = Sampling {
                temperature: Some(bad),
                top_p: Some(bad),
                min_p: Some(bad),
                repetition_penalty: Some(bad),
                num_sequences: Some(17),
                logit_bias: [(3, f32::NAN)].into(),
                ..Default::default()
            };
            let stopping = Stopping {
                max_tokens: Some(0),
                conditions: vec![StopCondition::default(); 16],
                ..Default::default()
            };
            let violations = fields(&request(sampling, stopping));
            for field in [
                "sampling.temperature",
                "sampling.top_p",
                "sampling.min_p",
                "sampling.repetition_penalty",
                "sampling.num_sequences",
                "sampling.logit_bias[3]",
                "stopping.max_tokens",
                "stopping.conditions[0]",
            ] {
                assert!(
                    violations.iter().any(|f| f == field),
                    "{field} with {bad}: {violations:?}"
                );
            }
        }
    }

    #[test]
    fn penalties_and_lengths_have_limits() {
        let limits = Sampling {
            frequency_penalty: Some(-2.0),
            presence_penalty: Some(2.0),
            repetition_penalty: Some(10.0),
            num_sequences: Some(MAX_SEQUENCES),
            logit_bias: (0..MAX_LOGIT_BIAS as u32).map(|token| (token, -100.0)).collect(),
            ..Default::default()
        };
        let short = Stopping { max_tokens: Some(3), min_tokens: Some(3), ..Default::default() };
        assert_eq!(fields(&request(limits, short)), Vec::<String>::new());

        let beyond = Sampling {
            frequency_penalty: Some(-2.1),
            presence_penalty: Some(2.1),
            repetition_penalty: Some(0.0),
            num_sequences: Some(0),
            logit_bias: (0..=MAX_LOGIT_BIAS as u32).map(|token| (token, 0.0)).collect(),
            ..Default::default()
        };
        let contradictory =
            Stopping { max_tokens: Some(3), min_tokens: Some(4), ..Default::default() };
        assert_eq!(
            fields(&request(beyond, contradictory)),
            [
                "sampling.frequency_penalty",
                "sampling.presence_penalty",
                "sampling.repetition_penalty",
                "sampling.num_sequences",
                "sampling.logit_bias",
                "stopping.min_tokens",
            ]
        );
    }

    #[test]
    fn candidates_require_log_probabilities() {
        let with = |response| GenerateRequest {
            response: Some(response),
            ..request(Sampling::default(), Stopping::default())
        };
        let options = |top_candidates, output_logprobs| ResponseOptions {
            output_logprobs,
            top_candidates,
            ..ResponseOptions::default()
        };
        assert_eq!(fields(&with(options(20, true))), Vec::<String>::new());
        assert_eq!(fields(&with(options(21, true))), ["response.top_candidates"]);
        assert_eq!(fields(&with(options(1, false))), ["response.top_candidates"]);
    }

    #[test]
    fn an_empty_request_is_rejected_for_its_missing_input() {
        assert_eq!(fields(&GenerateRequest::default()), ["input"]);
        let long = GenerateRequest { request_id: "x".repeat(129), ..Default::default() };
        let not_urgent = GenerateRequest { priority: Some(1001), ..Default::default() };
        assert_eq!(fields(&not_urgent), ["priority", "input"]);
        let least_urgent = GenerateRequest { priority: Some(1000), ..Default::default() };
        assert_eq!(fields(&least_urgent), ["input"]);
        assert_eq!(fields(&long), ["request_id", "input"]);
        for salt in ["x".repeat(129), "a b".into(), "ä".into()] {
            let salted = GenerateRequest { cache_salt: salt, ..Default::default() };
            assert_eq!(fields(&salted), ["cache_salt", "input"]);
        }
        let salted = GenerateRequest { cache_salt: "~".repeat(128), ..Default::default() };
        assert_eq!(fields(&salted), ["input"]);
    }

    #[test]
    fn the_number_of_violations_is_limited() {
        let many = request(
            Sampling {
                logit_bias: (0..1000).map(|t| (t, f32::NAN)).collect(),
                ..Default::default()
            },
            Stopping { conditions: vec![StopCondition::default(); 100_000], ..Default::default() },
        );
        assert_eq!(fields(&many).len(), MAX_VIOLATIONS);
        let long = GenerateRequest { model: "x".repeat(300), ..Default::default() };
        assert_eq!(fields(&long), ["model", "input"]);
    }
}
