//! Tenant of a request: the owner of its API key, or as named by a trusted gateway in front of the
//! router.

mod account;
mod args;
mod failures;
mod key;
mod key_file;
mod priority;
mod rate;

use std::sync::Arc;

use stoker_shared::ServiceError;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap};

pub(crate) use account::{Account, Admitted, ApiKeys};
pub use args::TenantArgs;
pub use key::{KeyHash, NewKey};
pub use key_file::{KeyEntry, KeyFile, KeyFileError, TenantPolicy};
pub(crate) use priority::Priorities;
pub use priority::{PriorityError, TenantPriority};

/// Maximum length of a tenant's name, in bytes.
const MAX_TENANT_BYTES: usize = 64;

/// Reads the tenant from a header. The header is not authenticated here: that is up to the gateway.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tenants(Option<MetadataKey<Ascii>>);

impl Tenants {
    /// Reads the header of that name, as parsed by [`header`]. Without one, every request has the
    /// tenant "".
    pub(crate) fn new(header: Option<&str>) -> Self {
        Self(header.and_then(|name| name.parse().ok()))
    }

    /// Returns the name of the header, if there is one.
    pub(crate) fn header(&self) -> Option<&str> {
        self.0.as_ref().map(MetadataKey::as_str)
    }

    /// Returns the tenant of a request; "" without the header.
    pub(crate) fn of(&self, metadata: &MetadataMap) -> Result<Arc<str>, ServiceError> {
        let Some(header) = &self.0 else {
            return Ok(Arc::default());
        };
        let invalid = |why: &str| Err(ServiceError::invalid(header.as_str(), why));
        let mut values = metadata.get_all(header).iter();
        let (value, another) = (values.next(), values.next());
        let name = value.map_or(Ok(""), |value| value.to_str());
        match name {
            _ if another.is_some() => invalid("occurs more than once; a request has one tenant"),
            Ok(name) if name.len() > MAX_TENANT_BYTES => invalid(&format!(
                "has {} bytes; at most {MAX_TENANT_BYTES} are allowed",
                name.len()
            )),
            Ok(name) if name.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(name.into()),
            _ => invalid("may have printable ASCII characters only, and no spaces"),
        }
    }
}

/// Parses the name of the tenant header, for `value_parser`.
pub(crate) fn header(text: &str) -> Result<String, String> {
    let name = text.to_ascii_lowercase();
    let reserved =
        name.starts_with("grpc-") || matches!(&*name, "te" | "content-type" | "traceparent");
    if reserved {
        return Err("gRPC uses this header itself; choose another, for instance x-tenant".into());
    }
    // This also refuses names that end with -bin, whose values are binary.
    match name.parse::<MetadataKey<Ascii>>() {
        Ok(_) => Ok(name),
        Err(_) => Err("use the name of a header with a text value, for instance x-tenant".into()),
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
        assert_eq!(
            &*of(Some("x-tenant"), &[&[b'a'; MAX_TENANT_BYTES]]).unwrap(),
            "a".repeat(MAX_TENANT_BYTES)
        );
        assert_eq!(&*of(Some("x-tenant"), &[]).unwrap(), "", "absent");
        assert_eq!(&*of(None, &[b"acme"]).unwrap(), "", "no header is configured");
    }

    #[test]
    fn an_invalid_value_is_refused_with_the_header_name() {
        for (values, why) in [
            (&[&[b'a'; MAX_TENANT_BYTES + 1][..]][..], "has 65 bytes; at most 64"),
            (&[b"a b"], "printable ASCII"),
            (&["ä".as_bytes()], "printable ASCII"),
            (&[b"a", b"b"], "more than once"),
        ] {
            let error = of(Some("x-tenant"), values).unwrap_err().to_string();
            assert!(error.starts_with("x-tenant: ") && error.contains(why), "{error}");
        }
    }

    #[test]
    fn reserved_and_binary_headers_are_refused() {
        assert_eq!(header("X-Tenant"), Ok("x-tenant".into()));
        for bad in ["", "a b", "x-tenant-bin", "grpc-timeout", "TE", "content-type"] {
            assert!(header(bad).is_err(), "{bad:?}");
        }
    }
}
