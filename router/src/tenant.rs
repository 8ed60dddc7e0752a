//! Who asks: the tenant, as a gateway in front names it.

mod priority;

use std::sync::Arc;

use stoker_shared::ServiceError;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap};

pub(crate) use priority::Priorities;
pub use priority::{PriorityError, TenantPriority};

/// The longest name of a tenant, in bytes.
const LONGEST: usize = 64;

/// Reads tenants from one header. Nobody checks who set it: that is the gateway's part.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tenants(Option<MetadataKey<Ascii>>);

impl Tenants {
    /// From the header of that name, which [`header`] has read; without one, everybody is the tenant "".
    pub(crate) fn new(header: Option<&str>) -> Self {
        Self(header.and_then(|name| name.parse().ok()))
    }

    /// The tenant of a request; "" if the header is not there.
    pub(crate) fn of(&self, metadata: &MetadataMap) -> Result<Arc<str>, ServiceError> {
        let Some(header) = &self.0 else {
            return Ok(Arc::default());
        };
        let wrong = |why: &str| Err(ServiceError::invalid(header.as_str(), why));
        let mut values = metadata.get_all(header).iter();
        let (value, another) = (values.next(), values.next());
        let name = value.map_or(Ok(""), |value| value.to_str());
        match name {
            _ if another.is_some() => wrong("is there more than once; a request has one tenant"),
            Ok(name) if name.len() > LONGEST => {
                wrong(&format!("has {} bytes; at most {LONGEST} are allowed", name.len()))
            }
            Ok(name) if name.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(name.into()),
            _ => wrong("may have printable ASCII characters only, and no blanks"),
        }
    }
}

/// Reads the name of a header that may name tenants. For `value_parser`.
pub(crate) fn header(text: &str) -> Result<String, String> {
    let name = text.to_ascii_lowercase();
    let ours = name.starts_with("grpc-") || matches!(&*name, "te" | "content-type" | "traceparent");
    if ours {
        return Err("gRPC uses this header itself; choose another, for instance x-tenant".into());
    }
    // This refuses names that end with -bin too: their values are not text.
    match name.parse::<MetadataKey<Ascii>>() {
        Ok(_) => Ok(name),
        Err(_) => Err("write the name of a header with a text value, for instance x-tenant".into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn of(header: Option<&str>, values: &[&'static [u8]]) -> Result<Arc<str>, ServiceError> {
        let mut headers = http::HeaderMap::new();
        for value in values {
            headers.append("x-tenant", http::HeaderValue::from_bytes(value).unwrap());
        }
        Tenants::new(header).of(&MetadataMap::from_headers(headers))
    }

    #[test]
    fn the_header_names_the_tenant() {
        assert_eq!(&*of(Some("x-tenant"), &[b"acme"]).unwrap(), "acme");
        assert_eq!(&*of(Some("x-tenant"), &[&[b'a'; LONGEST]]).unwrap(), "a".repeat(LONGEST));
        assert_eq!(&*of(Some("x-tenant"), &[]).unwrap(), "", "absent");
        assert_eq!(&*of(None, &[b"acme"]).unwrap(), "", "nobody reads it");
    }

    #[test]
    fn a_value_that_is_wrong_is_refused_by_name() {
        for (values, why) in [
            (&[&[b'a'; LONGEST + 1][..]][..], "has 65 bytes; at most 64"),
            (&[b"a b"], "printable ASCII"),
            (&["ä".as_bytes()], "printable ASCII"),
            (&[b"a", b"b"], "more than once"),
        ] {
            let error = of(Some("x-tenant"), values).unwrap_err().to_string();
            assert!(error.starts_with("x-tenant: ") && error.contains(why), "{error}");
        }
    }

    #[test]
    fn only_a_header_that_is_free_can_be_chosen() {
        assert_eq!(header("X-Tenant"), Ok("x-tenant".into()));
        for bad in ["", "a b", "x-tenant-bin", "grpc-timeout", "TE", "content-type"] {
            assert!(header(bad).is_err(), "{bad:?}");
        }
    }
}
