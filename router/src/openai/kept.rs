//! The memory of what is kept of a response until it is sent.

use prost::Message;
use stoker_proto::v1::TokenLogprob;
use stoker_shared::{ServiceError, serve::Charge};

/// Memory of a message that is kept, as a multiple of its size on the wire: a candidate of a few
/// bytes becomes a structure with two allocations.
const PER_WIRE_BYTE: u64 = 8;

/// Charges what is kept to the memory budget of requests.
#[derive(Debug, Clone)]
pub(super) struct Kept(Option<Charge>);

impl Kept {
    /// Begins with nothing. `request` is the charge of the request's body.
    pub(super) fn new(request: Option<&Charge>) -> Self {
        Self(request.map(Charge::another))
    }

    /// Adds `message`, of which there are `copies`.
    pub(super) fn add(&self, message: &impl Message, copies: u32) -> Result<(), ServiceError> {
        self.grow(message.encoded_len(), copies)
    }

    /// Adds log probabilities, of which there are `copies`.
    pub(super) fn add_logprobs(
        &self,
        tokens: &[TokenLogprob],
        copies: u32,
    ) -> Result<(), ServiceError> {
        self.grow(tokens.iter().map(Message::encoded_len).sum(), copies)
    }

    fn grow(&self, wire_bytes: usize, copies: u32) -> Result<(), ServiceError> {
        let bytes = PER_WIRE_BYTE * wire_bytes as u64 * u64::from(copies);
        self.0.as_ref().map_or(Ok(()), |charge| charge.grow(bytes))
    }
}
