//! How messages become bytes: as tonic-prost has it, with buffers for small ones.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// What a stream has room for at first, in bytes, once for each direction. An event is about fifty bytes long,
/// and a stream keeps its buffers while it waits; larger messages make them grow. Less than 1,024 would
/// not be kept: `bytes` then allocates for every message.
const BUFFER: usize = 1 << 10;
/// A batch of messages is sent on once it is so long, in bytes; tonic's own limit.
const BATCH: usize = 32 << 10;

/// tonic-prost's codec with a buffer of one KiB instead of eight.
#[derive(Debug)]
pub struct SmallMessages<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallMessages<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallMessages<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, BATCH))
    }

    fn decoder(&mut self) -> ProstDecoder<U> {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, BATCH))
    }
}
