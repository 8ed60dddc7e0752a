//! How messages become bytes: as tonic-prost has it, with buffers for small ones.

use std::{any::TypeId, marker::PhantomData};

use prost::{Message, bytes::Buf};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use crate::{fields, v1::GenerateRequest};

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
    type Decoder = Checked<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, BATCH))
    }

    fn decoder(&mut self) -> Checked<U> {
        Checked(ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, BATCH)))
    }
}

/// tonic-prost's decoder, which is given no request whose parts would take far more memory than its bytes.
#[derive(Debug)]
pub struct Checked<U>(ProstDecoder<U>);

impl<U: Message + Default + 'static> Decoder for Checked<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // All of them are in one piece here.
        if TypeId::of::<U>() == TypeId::of::<GenerateRequest>()
            && fields::count(bytes.chunk()) > fields::MOST
        {
            let most = fields::MOST;
            return Err(Status::invalid_argument(format!(
                "request: has more than {most} messages, conditions and other fields; send fewer"
            )));
        }
        self.0.decode(bytes)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}
