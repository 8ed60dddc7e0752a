//! gRPC messages with wrong prefixes, and compressed ones that expand to far more than they are.

use rand::RngExt;

use super::{GENERATE, one_of, random_bytes};
use crate::{
    attack::{Attack, Context, Ending, Scope},
    calls::{call, grpc},
    http2::message,
};

const FAMILY: &str = "malformed messages";

/// The attacks of this file.
pub const ATTACKS: &[Attack] = &[
    Attack {
        family: FAMILY,
        name: "wrong message prefixes",
        scope: Scope::Grpc,
        per_second: 8.0,
        concurrency: 32,
        attempt: |cx| Box::pin(prefixes(cx)),
    },
    Attack {
        family: FAMILY,
        name: "gzip bombs",
        scope: Scope::Grpc,
        per_second: 1.0,
        concurrency: 4,
        attempt: |cx| Box::pin(gzip_bomb(cx)),
    },
    Attack {
        family: "wrong types",
        name: "wrong calls",
        scope: Scope::Grpc,
        per_second: 8.0,
        concurrency: 32,
        attempt: |cx| Box::pin(wrong_call(cx)),
    },
];

async fn prefixes(mut cx: Context) -> Ending {
    let rng = &mut cx.rng;
    let bytes = random_bytes(rng, 100);
    let length = bytes.len();
    let body = match rng.random_range(0..9) {
        0 => message(0, length + rng.random_range(1..1_000), &bytes),
        1 => message(0, u32::MAX as usize, &bytes),
        2 => message(0, 5 << 20, &bytes),
        3 => message(1, length, &bytes),
        4 => message(rng.random_range(2..=255), length, &bytes),
        // More bytes, or more messages, than the call takes.
        5 => message(0, rng.random_range(0..length), &bytes),
        6 => message(0, 0, &[]).repeat(1_000),
        7 => vec![0; rng.random_range(1..5)],
        // No message at all.
        _ => Vec::new(),
    };
    call(&cx, grpc(&cx, GENERATE), body).await
}

/// Zeros, of which one byte in a thousand is sent: a megabyte would be a gigabyte.
async fn gzip_bomb(mut cx: Context) -> Ending {
    // The header of a block whose codes are such that every further zero byte stands for 1,032 of
    // them, after a header of gzip.
    let gzip = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    let block =
        [0xec, 0xc1, 0x01, 0x01, 0x00, 0x00, 0x00, 0x80, 0x90, 0xfe, 0xaf, 0xee, 0x08, 0x0a];
    let zeros = vec![0; one_of(&mut cx.rng, &[1 << 10, 64 << 10, 1 << 20])];
    let bytes = [&gzip[..], &block, &zeros].concat();
    let request = grpc(&cx, GENERATE).header("grpc-encoding", "gzip");
    call(&cx, request, message(1, bytes.len(), &bytes)).await
}

async fn wrong_call(mut cx: Context) -> Ending {
    let good = message(0, 0, &[]);
    let variant = cx.rng.random_range(0..12);
    let url = |path: &str| format!("http://{}{path}", cx.address);
    let post = |path: &str| http::Request::post(url(path));
    let request = match variant {
        0 => post(GENERATE),
        1 => post(GENERATE).header("content-type", "application/json"),
        2 => post(GENERATE).header("content-type", "application/grpc+json"),
        3 => http::Request::get(url(GENERATE)).header("content-type", "application/grpc"),
        4 => grpc(&cx, "/stoker.v1.Inference/NoSuchMethod"),
        5 => grpc(&cx, "/no.such.Service/Method"),
        6 => grpc(&cx, &format!("/{}", "a/".repeat(4_000))),
        7 => grpc(&cx, GENERATE).header("grpc-timeout", "99999999999999999999H"),
        8 => grpc(&cx, GENERATE).header("grpc-timeout", "-1x"),
        9 => grpc(&cx, GENERATE).header("grpc-encoding", "no-such-encoding"),
        10 => grpc(&cx, GENERATE).header("x-bin", "not base64 !"),
        _ => grpc(&cx, GENERATE).header("traceparent", "00-zz-zz-zz"),
    };
    call(&cx, request, good).await
}
