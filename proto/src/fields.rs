//! Counts the fields of a request before it is decoded: an empty chat message takes two bytes on
//! the wire and more than a hundred in memory.

/// Maximum number of fields of a request, including those of its nested messages.
pub(crate) const MAX_FIELDS: usize = 65_536;

/// Fields of `GenerateRequest` whose nested fields are counted: chat, sampling, stopping and
/// guided. Token ids are packed numbers, and only routers send `routing`.
const CHAT: u64 = 5;
const NESTED: [u64; 4] = [CHAT, 6, 7, 9];

/// Wire types of protobuf.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const FIXED_32: u64 = 5;

/// Counts the fields of an encoded request, including those of its nested messages. Stops at
/// malformed input, which decoding then reports.
pub(crate) fn count(request: &[u8]) -> usize {
    let mut fields = 0;
    for_each_field(request, |number, content| {
        fields += 1;
        if NESTED.contains(&number) {
            for_each_field(content, |_, content| {
                fields += 1;
                // The messages of a chat have fields too.
                if number == CHAT {
                    for_each_field(content, |_, _| fields += 1);
                }
            });
        }
    });
    fields
}

/// Calls `visit` with the number of every field, and its bytes if it is length-delimited.
fn for_each_field(mut bytes: &[u8], mut visit: impl FnMut(u64, &[u8])) {
    while let Some(key) = varint(&mut bytes) {
        let length = match key & 7 {
            VARINT => match varint(&mut bytes) {
                Some(_) => 0,
                None => return,
            },
            FIXED_64 => 8,
            FIXED_32 => 4,
            BYTES => match varint(&mut bytes).and_then(|length| usize::try_from(length).ok()) {
                Some(length) => length,
                None => return,
            },
            _ => return,
        };
        let Some((content, rest)) = bytes.split_at_checked(length) else { return };
        visit(key >> 3, if key & 7 == BYTES { content } else { &[] });
        bytes = rest;
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::v1::{
        Chat, ChatMessage, GenerateRequest, Sampling, StopCondition, Stopping, TokenIds,
        generate_request::Input,
    };

    fn with_input(input: Option<Input>) -> GenerateRequest {
        GenerateRequest { input, ..GenerateRequest::default() }
    }

    #[test]
    fn nested_fields_count_but_ids_and_text_do_not() {
        let ids = TokenIds { ids: vec![300; 100_000] };
        assert_eq!(count(&with_input(Some(Input::TokenIds(ids))).encode_to_vec()), 1);
        assert_eq!(count(&with_input(Some(Input::Prompt("x".repeat(100_000)))).encode_to_vec()), 1);
        let messages = vec![ChatMessage::default(); 1_000];
        let chat = Chat { messages, ..Chat::default() };
        assert_eq!(count(&with_input(Some(Input::Chat(chat))).encode_to_vec()), 1_001);
        let message =
            ChatMessage { tool_calls_json: vec![String::new(); 500], ..ChatMessage::default() };
        let chat = Chat { messages: vec![message], ..Chat::default() };
        assert_eq!(count(&with_input(Some(Input::Chat(chat))).encode_to_vec()), 502);
        let stopping =
            Stopping { conditions: vec![StopCondition::default(); 70], ..Default::default() };
        let sampling =
            Sampling { logit_bias: (0..30).map(|id| (id, 1.0)).collect(), ..Default::default() };
        let request = GenerateRequest {
            stopping: Some(stopping),
            sampling: Some(sampling),
            ..with_input(None)
        };
        assert_eq!(count(&request.encode_to_vec()), 102);
    }

    #[test]
    fn malformed_input_ends_the_count() {
        for bytes in
            [&[][..], &[0xff; 20], &[0x1a, 100], &[0x2a, 2, 0x0a], &[0x0b], &[0x2a, 2, 0x0a, 9]]
        {
            assert!(count(bytes) <= 2, "{bytes:?}");
        }
    }
}
