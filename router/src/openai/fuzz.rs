//! Entry points for `scripts/fuzz`: bodies to requests, without a server.

use stoker_proto::v1::GenerateRequest;
use stoker_shared::validate;

use super::{chat, completions, error::ApiError, fields::Fields, options::Options};

/// Translates a body of `/v1/chat/completions`. An error is the JSON of its response.
pub fn chat(body: &[u8]) -> Result<Vec<GenerateRequest>, String> {
    let translated = parse(body, chat::take);
    translated.and_then(|(request, options)| checked(vec![request], &options)).map_err(json)
}

/// Translates a body of `/v1/completions`.
pub fn completions(body: &[u8]) -> Result<Vec<GenerateRequest>, String> {
    let translated = parse(body, completions::take);
    let translated = translated.and_then(|(inputs, request, options)| {
        let requests = inputs.into_iter().map(|input| {
            let input = Some(input);
            GenerateRequest { input, ..request.clone() }
        });
        checked(requests.collect(), &options)
    });
    translated.map_err(json)
}

fn parse<T>(
    body: &[u8],
    take: impl FnOnce(&mut Fields<'_>) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let mut fields = Fields::parse(body)?;
    let taken = take(&mut fields)?;
    fields.finish()?;
    Ok(taken)
}

/// Validates requests as the router does before a worker has them.
fn checked(
    requests: Vec<GenerateRequest>,
    options: &Options,
) -> Result<Vec<GenerateRequest>, ApiError> {
    for request in &requests {
        validate::generate(request)
            .map_err(|error| ApiError::from(error).renamed(&options.names))?;
    }
    Ok(requests)
}

fn json(error: ApiError) -> String {
    error.event()
}
