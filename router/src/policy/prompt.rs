//! Prefixes of a prompt as a chain of hashes: two prompts share a prefix as far as their chains
//! agree.
//!
//! The router has no tokenizer, so the chain hashes bytes, and all fields that affect tokenization.

use std::hash::{BuildHasher, Hasher};

use foldhash::quality::FixedState;
use stoker_proto::v1::{Chat, GenerateRequest, generate_request::Input};

/// Bytes covered by each of the first links of a chain.
const FIRST_LINK_BYTES: usize = 512;
/// Number of links after which the size of a link doubles. This keeps the chain of a long prompt
/// short, and its incomplete last link omits at most 1/32 of the prompt.
const LINKS_PER_SIZE: usize = 32;
/// Field separator, which does not occur in UTF-8.
const END_OF_FIELD: &[u8] = &[0xFF];

/// The prefix of a prompt up to `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    /// Hash of the whole prefix.
    pub(crate) hash: u64,
    /// Length of the prefix, in bytes of the prompt.
    pub(crate) end: u64,
}

/// Returns the chain of a request's prompt. All routers of this version compute the same chain, so
/// that they agree on [`landmarks`] without communication. Requests that must not share a cache
/// (another model, salt or tenant) have no link in common. A worker's digest is not part of the
/// chain: links are stored per connection to a worker, during which the digest does not change.
pub(crate) fn chain(request: &GenerateRequest) -> Vec<Link> {
    let hashes = FixedState::default();
    let mut root = hashes.build_hasher();
    let tenant = request.routing.as_ref().map_or("", |routing| &routing.tenant);
    for field in [&request.model, &request.cache_salt, tenant] {
        write_field(&mut root, field.as_bytes());
    }
    match &request.input {
        Some(Input::Prompt(text)) => {
            root.write_u8(0);
            let mut chain = Chain::new(root.finish(), &hashes);
            chain.push(text.as_bytes());
            chain.links
        }
        Some(Input::TokenIds(tokens)) => {
            root.write_u8(1);
            let mut chain = Chain::new(root.finish(), &hashes);
            chain.push(bytemuck::cast_slice(&tokens.ids));
            chain.links
        }
        Some(Input::Chat(chat)) => {
            root.write_u8(2);
            // Chat templates put tools first, and template arguments may change any part of the
            // prompt.
            for field in chat.tools_json.iter().chain([&chat.template_kwargs_json]) {
                write_field(&mut root, field.as_bytes());
            }
            let mut chain = Chain::new(root.finish(), &hashes);
            for field in fields(chat) {
                chain.push(field.as_bytes());
                chain.push(END_OF_FIELD);
            }
            chain.links
        }
        None => Vec::new(),
    }
}

/// Whether a worker looks up the prompt in its prefix cache. Prompt log probabilities need the
/// prompt to be computed, unless the request is resumed, in which case they have been sent already.
pub(crate) fn reads_cache(request: &GenerateRequest) -> bool {
    let logprobs = request.response.is_some_and(|response| response.prompt_logprobs);
    let resumed = request.routing.as_ref().is_some_and(|routing| routing.resume.is_some());
    !request.bypass_prefix_cache && (!logprobs || resumed)
}

/// Returns the links that determine the rendezvous owners of a prompt, the deepest first: those at
/// the last two powers of two. A conversation retains one of them until its chain is four times as
/// long.
pub(crate) fn landmarks(chain: &[Link]) -> impl Iterator<Item = &Link> {
    let deepest = chain.len().checked_ilog2();
    let powers = deepest.into_iter().flat_map(|power| [Some(power), power.checked_sub(1)]);
    powers.flatten().filter_map(|power| chain.get((1 << power) - 1))
}

/// Returns all text fields of the messages, in order.
fn fields(chat: &Chat) -> impl Iterator<Item = &String> {
    chat.messages.iter().flat_map(|message| {
        let calls = message.tool_calls_json.iter();
        let first = [&message.role, &message.name, &message.tool_call_id];
        first.into_iter().chain(calls).chain([&message.content])
    })
}

/// Returns the size of the prompt's text, in bytes; `None` for token ids, whose number is known.
pub(crate) fn text_bytes(request: &GenerateRequest) -> Option<u64> {
    let bytes = match request.input.as_ref()? {
        Input::Prompt(text) => text.len(),
        Input::TokenIds(_) => return None,
        Input::Chat(chat) => {
            let tools: usize = chat.tools_json.iter().map(String::len).sum();
            tools + fields(chat).map(String::len).sum::<usize>()
        }
    };
    Some(bytes as u64)
}

fn write_field(hasher: &mut impl Hasher, field: &[u8]) {
    hasher.write(field);
    hasher.write(END_OF_FIELD);
}

/// Builder of a chain.
struct Chain<'a> {
    links: Vec<Link>,
    hashes: &'a FixedState,
    hasher: foldhash::quality::FoldHasher<'a>,
    /// Bytes remaining until the next link is complete.
    remaining: usize,
    end: u64,
}

impl<'a> Chain<'a> {
    fn new(root: u64, hashes: &'a FixedState) -> Self {
        let mut hasher = hashes.build_hasher();
        hasher.write_u64(root);
        Self { links: Vec::new(), hashes, hasher, remaining: FIRST_LINK_BYTES, end: 0 }
    }

    fn push(&mut self, mut bytes: &[u8]) {
        while bytes.len() >= self.remaining {
            let (link, rest) = bytes.split_at(self.remaining);
            self.hasher.write(link);
            self.end += link.len() as u64;
            self.close();
            bytes = rest;
        }
        if !bytes.is_empty() {
            self.hasher.write(bytes);
            self.end += bytes.len() as u64;
            self.remaining -= bytes.len();
        }
    }

    /// Completes a link and seeds the next one with its hash.
    fn close(&mut self) {
        let hash = self.hasher.finish();
        self.links.push(Link { hash, end: self.end });
        self.hasher = self.hashes.build_hasher();
        self.hasher.write_u64(hash);
        // A message has at most 4 MiB: the shift stays small.
        self.remaining = FIRST_LINK_BYTES << (self.links.len() / LINKS_PER_SIZE);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stoker_proto::v1::{ChatMessage, Routing, TokenIds};

    use super::*;

    fn prompt(text: &str) -> GenerateRequest {
        GenerateRequest { input: Some(Input::Prompt(text.into())), ..Default::default() }
    }

    fn ids(ids: Vec<u32>) -> GenerateRequest {
        GenerateRequest { input: Some(Input::TokenIds(TokenIds { ids })), ..Default::default() }
    }

    fn chat(messages: &[(&str, &str)]) -> GenerateRequest {
        let message = |&(role, content): &(&str, &str)| ChatMessage {
            role: role.into(),
            content: content.into(),
            ..Default::default()
        };
        let messages = messages.iter().map(message).collect();
        let chat = Chat { messages, ..Default::default() };
        GenerateRequest { input: Some(Input::Chat(chat)), ..Default::default() }
    }

    fn shared(a: &[Link], b: &[Link]) -> usize {
        a.iter().zip(b).take_while(|(a, b)| a == b).count()
    }

    #[test]
    fn a_long_prompt_has_a_short_chain() {
        let ends = |bytes: usize| chain(&prompt(&"x".repeat(bytes)));
        assert_eq!(ends(511).len(), 0);
        assert_eq!(ends(512).len(), 1);
        assert_eq!(ends(40 << 10).len(), 56);
        let longest = ends(4 << 20);
        assert!(longest.len() < 300, "{}", longest.len());
        assert!(longest.last().is_some_and(|last| last.end > (4 << 20) * 31 / 32));
    }

    #[test]
    fn requests_that_must_not_share_a_cache_have_no_link_in_common() {
        let text = "x".repeat(2048);
        let plain = prompt(&text);
        let routing = Some(Routing { tenant: "a".into(), ..Default::default() });
        let others = [
            GenerateRequest { model: "m".into(), ..plain.clone() },
            GenerateRequest { cache_salt: "s".into(), ..plain.clone() },
            // The same bytes in another field.
            GenerateRequest { cache_salt: "m".into(), ..plain.clone() },
            GenerateRequest { routing, ..plain.clone() },
            ids(vec![u32::from_ne_bytes(*b"xxxx"); 512]),
            chat(&[("", &text)]),
        ];
        let chains: Vec<_> = others.iter().chain([&plain]).map(chain).collect();
        for (i, one) in chains.iter().enumerate() {
            assert!(!one.is_empty());
            for other in &chains[..i] {
                assert!(one.iter().all(|link| other.iter().all(|o| o.hash != link.hash)));
            }
        }
    }

    #[test]
    fn a_continued_conversation_retains_its_links() {
        let (long, longer) = ("s".repeat(900), "u".repeat(1300));
        let first = chain(&chat(&[("system", &long), ("user", &longer)]));
        let more = [("system", &*long), ("user", &longer), ("assistant", "a"), ("user", &long)];
        let second = chain(&chat(&more));
        assert_eq!(first.len(), 4);
        assert_eq!(shared(&first, &second), 4);
        let swapped = chain(&chat(&[("user", &long), ("system", &longer)]));
        assert_eq!(shared(&first, &swapped), 0);
    }

    #[test]
    fn a_growing_prompt_retains_a_landmark() {
        let chain = |bytes: usize| chain(&prompt(&"x".repeat(bytes)));
        let marks = |bytes: usize| landmarks(&chain(bytes)).map(|l| l.end).collect::<Vec<_>>();
        assert!(marks(100).is_empty());
        assert_eq!(marks(600), [512]);
        assert_eq!(marks(512 * 9), [512 * 8, 512 * 4]);
        assert_eq!(marks(512 * 31), [512 * 16, 512 * 8]);
    }

    #[test]
    fn counts_the_bytes_of_text() {
        assert_eq!(text_bytes(&prompt("four")), Some(4));
        assert_eq!(text_bytes(&chat(&[("user", "four")])), Some(8));
        assert_eq!(text_bytes(&ids(vec![1])), None);
    }

    proptest! {
        #[test]
        fn chains_agree_exactly_as_far_as_prompts_do(
            same in 0usize..60_000,
            a in "[a-m]{0,3000}",
            b in "[n-z]{0,3000}",
        ) {
            let common = "x".repeat(same);
            let links = |tail: &str| chain(&prompt(&format!("{common}{tail}")));
            let (one, other) = (links(&a), links(&b));
            let within = |links: &[Link]| links.iter().filter(|l| l.end <= same as u64).count();
            let expected = if a.is_empty() || b.is_empty() {
                one.len().min(other.len())
            } else {
                within(&one)
            };
            prop_assert_eq!(shared(&one, &other), expected);
        }
    }
}
