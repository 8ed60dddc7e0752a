//! The codec of messages: that of tonic-prost with smaller buffers.

use std::{any::TypeId, marker::PhantomData};

use prost::{Message, bytes::Buf};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use crate::{fields, v1::GenerateRequest};

/// Initial buffer of a stream in each direction, in bytes. An event takes about fifty bytes, and a
/// stream keeps its buffers while it is idle; larger messages grow them. Below 1,024 bytes, `bytes`
/// would allocate for every message instead of reusing the buffer.
const BUFFER: usize = 1 << 10;
/// Size at which buffered messages are sent, in bytes. The default of tonic.
const BATCH: usize = 32 << 10;

/// The codec of tonic-prost with buffers of 1 KiB instead of 8 KiB.
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
    type Decoder = FieldLimitDecoder<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, BATCH))
    }

    fn decoder(&mut self) -> FieldLimitDecoder<U> {
        FieldLimitDecoder(ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, BATCH)))
    }
}

/// The decoder of tonic-prost. It rejects a request with too many fields before decoding, since
/// such a request would take far more memory than its encoded size.
#[derive(Debug)]
pub struct FieldLimitDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default + 'static> Decoder for FieldLimitDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // tonic passes a message as one contiguous chunk.
        if TypeId::of::<U>() == TypeId::of::<GenerateRequest>()
            && fields::count(bytes.chunk()) > fields::MAX_FIELDS
        {
            let max = fields::MAX_FIELDS;
            return Err(Status::invalid_argument(format!(
                "request: has more than {max} messages, conditions and other fields; send fewer"
            )));
        }
        self.0.decode(bytes)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}
