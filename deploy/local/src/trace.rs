//! `stoker trace`: where the time of a request went, from the routers' memory of recent requests.

mod json;

use std::{
    io::{self, IsTerminal, Write as _},
    time::Duration,
};

use stoker_proto::{
    duration::{from_wire, or_zero, to_wire},
    v1::{ListRequestsRequest, RequestRecord, RequestStage},
};
use stoker_shared::client::Address;

use crate::{
    cli::TraceArgs,
    clock,
    error::Error,
    routers::Routers,
    table::{Cell, one_line, table},
    waterfall,
};

/// Width of a picture that is not drawn on a terminal.
const DEFAULT_WIDTH: usize = 100;

/// Runs the command.
pub async fn run(args: TraceArgs) -> Result<(), Error> {
    if args.request_id.as_ref().is_some_and(String::is_empty) {
        let why =
            "REQUEST_ID is empty: give the id of a request, or nothing to list the recent ones";
        return Err(Error::Usage(why.into()));
    }
    let routers = Routers::connect(args.endpoint, &args.credentials).await?;
    let wanted = ListRequestsRequest {
        request_id: args.request_id.clone().unwrap_or_default(),
        min_duration: args.slower_than.and_then(to_wire),
        limit: args.limit,
    };
    let mut unreachable = routers.unreachable().to_vec();
    let (mut found, mut searched, mut kept) = (Vec::new(), 0, 0);
    for (router, returned) in routers.requests(&wanted).await {
        match returned {
            Ok(returned) => {
                (searched, kept) = (searched + 1, kept + returned.capacity);
                let records = returned.requests.into_iter();
                found.extend(records.map(|record| Found { router: router.clone(), record }));
            }
            Err(failed) => unreachable.push(failed),
        }
    }
    if searched == 0
        && let Some(first) = unreachable.first()
    {
        return Err(Error::Failed(first.to_string()));
    }
    unreachable.iter().for_each(|router| eprintln!("warning: not asked: {router}"));
    found.sort_by_key(|found| std::cmp::Reverse(clock::nanos(found.record.arrived)));
    found.truncate(args.limit as usize);
    let text = match &args.request_id {
        Some(id) if found.is_empty() => {
            return Err(Error::Failed(format!(
                "no request {id:?} at {}: it ended before the last {kept} that they keep \
                 (--recent-requests), or went to another router or to one that was restarted; the \
                 routers' logs have it",
                routers_text(searched)
            )));
        }
        _ if args.json => json::requests(&found)?,
        Some(_) => found.iter().map(|found| details(found, searched, width())).collect(),
        None => list(&found, searched),
    };
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Failed(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// A request, and the router that served it.
struct Found {
    router: Address,
    record: RequestRecord,
}

fn routers_text(count: usize) -> String {
    if count == 1 { "this router".into() } else { format!("these {count} routers") }
}

/// Returns the width of the terminal.
pub fn width() -> usize {
    if !io::stdout().is_terminal() {
        return DEFAULT_WIDTH;
    }
    ratatui::crossterm::terminal::size().map_or(DEFAULT_WIDTH, |(width, _)| width.into())
}

/// Returns the outcome of a request in one word.
pub fn outcome(record: &RequestRecord) -> String {
    if record.code.is_empty() { "running".into() } else { one_line(&record.outcome) }
}

/// Returns the stage, of router or worker, that took the longest.
pub fn longest_stage(record: &RequestRecord) -> &'static str {
    let timings = record.timings.unwrap_or_default();
    let total = |wanted| -> Duration {
        let stages = record.stages.iter().filter(|stage| stage.stage() == wanted);
        stages.map(|stage| or_zero(stage.duration)).sum()
    };
    let mut stages = vec![
        ("admission", total(RequestStage::Admission)),
        ("route", total(RequestStage::Route)),
        ("resume", total(RequestStage::Resume)),
        ("tokenize", or_zero(timings.tokenize)),
        ("queue", or_zero(timings.queue)),
        ("prefill", or_zero(timings.prefill)),
        ("decode", or_zero(timings.decode)),
        ("stream", or_zero(timings.stream)),
    ];
    // What the worker did is not known before the end.
    let at_worker = total(RequestStage::Attempt).saturating_sub(or_zero(timings.worker_total));
    stages.push((if record.timings.is_some() { "network" } else { "worker" }, at_worker));
    stages.into_iter().max_by_key(|(_, took)| *took).map_or("", |(name, _)| name)
}

/// Returns the facts and the waterfall of one request.
fn details(found: &Found, routers: usize, width: usize) -> String {
    let record = &found.record;
    let mut facts = vec![
        format!("request   {}", one_line(&record.request_id)),
        format!(
            "arrived   {}{}",
            clock::date_time(record.arrived),
            if routers > 1 { format!(" at router {}", found.router) } else { String::new() }
        ),
    ];
    let model = if record.model.is_empty() { "-".into() } else { one_line(&record.model) };
    let tenant = if record.tenant.is_empty() {
        String::new()
    } else {
        format!(", tenant {}", one_line(&record.tenant))
    };
    facts.push(format!("model     {model}{tenant}"));
    let code = if record.code == "OK" || record.code.is_empty() {
        String::new()
    } else {
        format!(" ({})", one_line(&record.code))
    };
    let took = waterfall::time(or_zero(record.duration));
    facts.push(format!("outcome   {}{code} after {took}", outcome(record)));
    let cached = match record.cached_prompt_tokens {
        0 => String::new(),
        cached => format!(" ({cached} cached)"),
    };
    let first = from_wire(record.time_to_first_token)
        .map(|first| format!(", the first after {}", waterfall::time(first)))
        .unwrap_or_default();
    facts.push(format!(
        "tokens    {}{cached} in, {} out{first}",
        record.prompt_tokens, record.generated_tokens
    ));
    if let Some(timings) = &record.timings {
        let mut engine = format!("engine    {} steps", timings.steps);
        if timings.preemptions > 0 {
            engine += &format!(", {} preemptions", timings.preemptions);
        }
        if timings.drafted_tokens > 0 {
            let (accepted, drafted) = (timings.accepted_tokens, timings.drafted_tokens);
            engine += &format!(", {accepted} of {drafted} draft tokens accepted");
        }
        facts.push(engine);
    }
    if !record.trace_id.is_empty() {
        facts.push(format!("trace     {}", one_line(&record.trace_id)));
    }
    format!("{}\n\n{}\n", facts.join("\n"), waterfall::draw(record, width))
}

/// Returns a table of requests.
fn list(found: &[Found], routers: usize) -> String {
    if found.is_empty() {
        return "no such requests\n".into();
    }
    let mut header = vec![
        "ARRIVED",
        "REQUEST",
        "MODEL",
        "OUTCOME",
        "DURATION",
        "FIRST TOKEN",
        "TOKENS IN",
        "OUT",
        "ATTEMPTS",
        "LONGEST STAGE",
    ];
    if routers > 1 {
        header.push("ROUTER");
    }
    let row = |found: &Found| {
        let record = &found.record;
        let time = |value| Cell::Right(waterfall::time(or_zero(value)));
        let mut row = vec![
            Cell::text(&clock::time(record.arrived)),
            Cell::text(&record.request_id),
            Cell::text(&record.model),
            Cell::text(&outcome(record)),
            time(record.duration),
            record.time_to_first_token.map_or_else(Cell::unknown, |first| time(Some(first))),
            Cell::Number(record.prompt_tokens.into()),
            Cell::Number(record.generated_tokens),
            Cell::Number(record.attempts.len() as u64),
            Cell::text(longest_stage(record)),
        ];
        if routers > 1 {
            row.push(Cell::text(&found.router.to_string()));
        }
        row
    };
    let mut text = String::new();
    table(&mut text, &header, found.iter().map(row).collect());
    text
}
