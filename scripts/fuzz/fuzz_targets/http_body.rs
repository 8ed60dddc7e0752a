//! Bodies of `/v1/chat/completions` and `/v1/completions`.
//!
//! Must hold: no panic; memory is at most 1 MiB and 64 bytes for each byte of the body; what is
//! accepted are valid requests with an input, and the body without its white space gives the same;
//! an error is JSON in OpenAI's shape and names a field of the body or the field that is missing,
//! unless the body is no JSON object.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use stoker_fuzz::bounded;
use stoker_proto::v1::GenerateRequest;
use stoker_router::fuzz::{chat, completions};
use stoker_shared::validate;

type Translated = Result<Vec<GenerateRequest>, String>;

fuzz_target!(|data: &[u8]| {
    for (required, translate) in [
        ("messages", chat as fn(&[u8]) -> Translated),
        ("prompt", completions as fn(&[u8]) -> Translated),
    ] {
        match bounded((1 << 20) + 64 * data.len(), || translate(data)) {
            Ok(requests) => {
                for request in &requests {
                    assert_eq!(validate::generate(request), Ok(()));
                    assert!(request.input.is_some() && request.routing.is_none());
                }
            }
            Err(error) => check_error(data, required, &error),
        }
    }
});

fn check_error(body: &[u8], required: &str, error: &str) {
    let error: Value = serde_json::from_str(error).expect("an error is JSON");
    let error = &error["error"];
    assert_eq!(error["type"], "invalid_request_error", "{error}");
    let message = error["message"].as_str().expect("an error has a message");
    let object: Result<BTreeMap<String, Value>, _> = serde_json::from_slice(body);
    match (error["param"].as_str(), object) {
        (None, _) => assert!(message.starts_with("the body is not"), "{error}"),
        (Some(param), Ok(object)) => {
            let end = param.find(['.', '[']).unwrap_or(param.len());
            let known = |field: &str| field == required || object.contains_key(field);
            assert!(known(param) || known(&param[..end]), "{error}");
            assert!(message.contains(&param[..end]), "{error}");
        }
        // A field's value may be JSON that is not read further.
        (Some(_), Err(_)) => {}
    }
}
