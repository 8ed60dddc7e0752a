//! Verification of servers that are not known by the name that was dialled.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use super::{IdentityPattern, PeerIdentity, certificate};

/// What the certificate of a server must be.
#[derive(Debug)]
enum Expected {
    /// Signed by one of these authorities, for a name that matches one of these patterns.
    Identity { roots: Arc<RootCertStore>, patterns: Vec<IdentityPattern> },
    /// This one.
    Pinned(CertificateDer<'static>),
}

/// Verifies the certificate of a server without regard to the name that was dialled.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    expected: Expected,
    provider: Arc<CryptoProvider>,
}

impl ServerVerifier {
    /// Accepts what `roots` have signed for a name that one of `patterns` matches.
    pub(super) fn identity(
        roots: Arc<RootCertStore>,
        patterns: Vec<IdentityPattern>,
        provider: Arc<CryptoProvider>,
    ) -> Self {
        Self { expected: Expected::Identity { roots, patterns }, provider }
    }

    /// Accepts `certificate` alone.
    pub(super) fn pinned(
        certificate: CertificateDer<'static>,
        provider: Arc<CryptoProvider>,
    ) -> Self {
        Self { expected: Expected::Pinned(certificate), provider }
    }
}

/// A certificate that is valid, but of another peer.
#[derive(Debug)]
pub(super) struct WrongIdentity {
    presented: PeerIdentity,
    expected: String,
}

impl fmt::Display for WrongIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { presented, expected } = self;
        write!(f, "the certificate of the peer is for {presented}, not for {expected}")
    }
}

impl std::error::Error for WrongIdentity {}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let wrong = |expected: String| {
            let presented = certificate::identity(end_entity);
            let error = WrongIdentity { presented, expected };
            Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
        };
        match &self.expected {
            Expected::Identity { roots, patterns } => {
                let parsed = ParsedCertificate::try_from(end_entity)?;
                let algorithms = self.provider.signature_verification_algorithms.all;
                verify_server_cert_signed_by_trust_anchor(
                    &parsed,
                    roots,
                    intermediates,
                    now,
                    algorithms,
                )?;
                if !certificate::identity(end_entity).matches(patterns) {
                    let patterns: Vec<_> = patterns.iter().map(ToString::to_string).collect();
                    return Err(wrong(format!("{} (--worker-identity)", patterns.join(", "))));
                }
            }
            Expected::Pinned(own) if own == end_entity => {}
            Expected::Pinned(_) => return Err(wrong("this process (--tls-cert)".into())),
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
