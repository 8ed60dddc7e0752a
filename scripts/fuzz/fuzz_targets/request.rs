//! Encoded requests as they arrive over gRPC, which the router validates first.
//!
//! Must hold: no panic; memory is at most 1 MiB and 64 bytes for each byte of the request; an
//! accepted request encodes to one that is equal and accepted; an error names at least one field,
//! and each error arrives at the client as it was, in headers of at most 8 KiB.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use prost::Message;
use stoker_fuzz::bounded;
use stoker_proto::v1::GenerateRequest;
use stoker_shared::{ServiceError, validate};
use tonic::Status;

fuzz_target!(|data: &[u8]| -> Corpus {
    let limit = (1 << 20) + 64 * data.len();
    let Ok(request) = bounded(limit, || GenerateRequest::decode(data)) else {
        return Corpus::Reject;
    };
    match bounded(limit, || validate::generate(&request)) {
        Ok(()) => {
            let again = GenerateRequest::decode(&request.encode_to_vec()[..]);
            assert_eq!(again.as_ref(), Ok(&request));
            assert_eq!(validate::generate(&request), Ok(()));
            assert!(validate::priority(&request) <= validate::MAX_PRIORITY);
        }
        Err(ServiceError::Invalid(violations)) => {
            assert!(!violations.is_empty());
            assert!(violations.iter().all(|v| !v.field.is_empty() && !v.description.is_empty()));
            let error = ServiceError::Invalid(violations);
            // The same request has the same error, whatever the order of a map.
            assert_eq!(validate::generate(&request), Err(error.clone()));
            let status = Status::from(error.clone());
            assert_eq!(ServiceError::from(&status), error);
            let headers = status.into_http::<()>().into_parts().0.headers;
            let bytes: usize = headers.iter().map(|(k, v)| k.as_str().len() + v.len()).sum();
            assert!(bytes <= 8 << 10, "an error of {bytes} bytes");
        }
        Err(error) => panic!("{error:?}"),
    }
    Corpus::Keep
});
