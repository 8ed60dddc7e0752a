//! What a prompt begins with, as a chain of hashes: two prompts share a prefix as far as their chains agree.
//!
//! There is no tokenizer here, so the chain runs over bytes, and over all that decides which tokens they become.

use std::hash::{BuildHasher, Hasher};

use foldhash::quality::FixedState;
use stoker_proto::v1::{Chat, GenerateRequest, generate_request::Input};

/// Bytes that the first links of a chain stand for.
const FIRST_LINK: usize = 512;
/// After so many links, the next ones stand for twice as many bytes: a chain is short however long the prompt,
/// and what its last, incomplete link leaves out is a thirty-second of the prompt at most.
const LINKS_OF_A_SIZE: usize = 32;
/// Ends a field. No UTF-8 has it.
const END_OF_FIELD: &[u8] = &[0xFF];

/// The beginning of a prompt, up to `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    /// Of everything up to the end.
    pub(crate) hash: u64,
    /// In bytes of the prompt.
    pub(crate) end: u64,
}

/// The chain of a request's prompt. Every router of this version gets the same one, so that they agree about
/// [`landmarks`] without a word. Requests that must not share a cache (another
/// model, salt, tenant) have no link in common. A worker's digest is not in it: links are remembered for each
/// connection to a worker, and a worker does not change its digest.
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
            chain.add(text.as_bytes());
            chain.links
        }
        Some(Input::TokenIds(tokens)) => {
            root.write_u8(1);
            let mut chain = Chain::new(root.finish(), &hashes);
            chain.add(bytemuck::cast_slice(&tokens.ids));
            chain.links
        }
        Some(Input::Chat(chat)) => {
            root.write_u8(2);
            // Templates put tools first, and what else they are told may change anything.
            for field in chat.tools_json.iter().chain([&chat.template_kwargs_json]) {
                write_field(&mut root, field.as_bytes());
            }
            let mut chain = Chain::new(root.finish(), &hashes);
            for field in fields(chat) {
                chain.add(field.as_bytes());
                chain.add(END_OF_FIELD);
            }
            chain.links
        }
        None => Vec::new(),
    }
}

/// Whether a worker looks for the prompt in its cache. Log probabilities of a prompt come from computing it; one that is
/// resumed has had them.
pub(crate) fn reads_cache(request: &GenerateRequest) -> bool {
    let logprobs = request.response.is_some_and(|response| response.prompt_logprobs);
    let resumed = request.routing.as_ref().is_some_and(|routing| routing.resume.is_some());
    !request.bypass_prefix_cache && (!logprobs || resumed)
}

/// The links by which routers that never saw a prompt look for it, the deepest first: those at the last two powers
/// of two. A conversation keeps one of them until it is four times as long.
pub(crate) fn landmarks(chain: &[Link]) -> impl Iterator<Item = &Link> {
    let deepest = chain.len().checked_ilog2();
    let powers = deepest.into_iter().flat_map(|power| [Some(power), power.checked_sub(1)]);
    powers.flatten().filter_map(|power| chain.get((1 << power) - 1))
}

/// Everything that messages say, in order.
fn fields(chat: &Chat) -> impl Iterator<Item = &String> {
    chat.messages.iter().flat_map(|message| {
        let calls = message.tool_calls_json.iter();
        let first = [&message.role, &message.name, &message.tool_call_id];
        first.into_iter().chain(calls).chain([&message.content])
    })
}

/// How much text the prompt has, in bytes. `None` for token ids, whose number is known.
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

/// A chain in the making.
struct Chain<'a> {
    links: Vec<Link>,
    hashes: &'a FixedState,
    hasher: foldhash::quality::FoldHasher<'a>,
    /// Bytes that are still missing from the next link.
    missing: usize,
    end: u64,
}

impl<'a> Chain<'a> {
    fn new(root: u64, hashes: &'a FixedState) -> Self {
        let mut hasher = hashes.build_hasher();
        hasher.write_u64(root);
        Self { links: Vec::new(), hashes, hasher, missing: FIRST_LINK, end: 0 }
    }

    fn add(&mut self, mut bytes: &[u8]) {
        while bytes.len() >= self.missing {
            let (link, rest) = bytes.split_at(self.missing);
            self.hasher.write(link);
            self.end += link.len() as u64;
            self.close();
            bytes = rest;
        }
        if !bytes.is_empty() {
            self.hasher.write(bytes);
            self.end += bytes.len() as u64;
            self.missing -= bytes.len();
        }
    }

    /// Ends a link and begins the next one with it.
    fn close(&mut self) {
        let hash = self.hasher.finish();
        self.links.push(Link { hash, end: self.end });
        self.hasher = self.hashes.build_hasher();
        self.hasher.write_u64(hash);
        // A message has at most 4 MiB: the shift stays small.
        self.missing = FIRST_LINK << (self.links.len() / LINKS_OF_A_SIZE);
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
    fn what_must_not_share_a_cache_has_no_link_in_common() {
        let text = "x".repeat(2048);
        let plain = prompt(&text);
        let routing = Some(Routing { tenant: "a".into(), ..Default::default() });
        let others = [
            GenerateRequest { model: "m".into(), ..plain.clone() },
            GenerateRequest { cache_salt: "s".into(), ..plain.clone() },
            // The end of one field is not the beginning of the next.
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
    fn a_conversation_that_goes_on_keeps_its_links() {
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
    fn a_prompt_that_grows_keeps_a_landmark() {
        let chain = |bytes: usize| chain(&prompt(&"x".repeat(bytes)));
        let marks = |bytes: usize| landmarks(&chain(bytes)).map(|l| l.end).collect::<Vec<_>>();
        assert!(marks(100).is_empty());
        assert_eq!(marks(600), [512]);
        assert_eq!(marks(512 * 9), [512 * 8, 512 * 4]);
        assert_eq!(marks(512 * 31), [512 * 16, 512 * 8]);
    }

    #[test]
    fn tells_how_much_text_there_is() {
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
