//! Errors of TLS in words that say what to change.

use std::{error::Error, io};

use rustls::{AlertDescription, CertificateError, Error as TlsError, InvalidMessage};
use x509_parser::time::ASN1Time;

use super::identity::shown;

/// Returns the cause of an error of TLS, or `None` for other errors.
pub fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<TlsError>() {
        return Some(cause(error));
    }
    let io = error.downcast_ref::<io::Error>()?;
    let inner = io.get_ref()?;
    if let Some(error) = inner.downcast_ref::<TlsError>() {
        return Some(cause(error));
    }
    // The text of tokio-rustls for a peer that closes the connection.
    (io.kind() == io::ErrorKind::UnexpectedEof && inner.to_string().contains("handshake")).then(
        || "the peer closed the connection during the TLS handshake; it may not speak TLS".into(),
    )
}

fn cause(error: &TlsError) -> String {
    match error {
        TlsError::InvalidCertificate(error) => certificate(error),
        TlsError::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the peer does not speak TLS on this port; connect without it, with http://".into()
        }
        TlsError::NoCertificatesPresented => {
            "the peer presented no client certificate, and --tls-client-ca requires one".into()
        }
        TlsError::AlertReceived(alert) => refused(*alert),
        TlsError::NoApplicationProtocol => {
            "the peer speaks TLS, but not HTTP/2, which gRPC needs".into()
        }
        error => error.to_string(),
    }
}

/// What a peer says about this process.
fn refused(alert: AlertDescription) -> String {
    use AlertDescription as Alert;
    let why = match alert {
        // Of a CA that has the name of one that the peer knows, the signature is wrong.
        Alert::UnknownCA | Alert::DecryptError => {
            "the peer does not trust the CA of this side's certificate; give it that CA, or use a \
             certificate of a CA that it trusts"
        }
        Alert::CertificateRequired => {
            "the peer requires a client certificate; give --tls-cert and --tls-key"
        }
        Alert::CertificateExpired => "the peer refuses this side's certificate: it has expired",
        Alert::BadCertificate | Alert::CertificateUnknown | Alert::UnsupportedCertificate => {
            "the peer refuses this side's certificate: it is missing, not for this name or use, or \
             its CA is unknown"
        }
        Alert::NoApplicationProtocol => "the peer does not speak HTTP/2 on this port",
        Alert::HandshakeFailure => {
            "the peer refuses the TLS handshake; it may require a client certificate, --tls-cert \
             and --tls-key"
        }
        Alert::ProtocolVersion => "the peer speaks other versions of TLS than 1.2 and 1.3",
        alert => return format!("the peer ended the TLS handshake: {alert:?}"),
    };
    why.into()
}

fn certificate(error: &CertificateError) -> String {
    use CertificateError as E;
    match error {
        E::UnknownIssuer => "the certificate of the peer is signed by an unknown CA; give the CA \
                             that signed it"
            .into(),
        E::Expired => "the certificate of the peer has expired; renew it".into(),
        E::ExpiredContext { not_after, .. } => {
            let date = date(not_after.as_secs());
            format!("the certificate of the peer expired on {date}; renew it")
        }
        E::NotValidYet => "the certificate of the peer is not valid yet; check the clocks".into(),
        E::NotValidYetContext { not_before, .. } => {
            let date = date(not_before.as_secs());
            format!("the certificate of the peer is not valid before {date}; check the clocks")
        }
        E::NotValidForName => "the certificate of the peer is for another name".into(),
        E::NotValidForNameContext { expected, presented } => format!(
            "the certificate of the peer is for {}, not for {}; dial a name that it has, give \
             --tls-server-name, or issue it for this one",
            shown(presented),
            expected.to_str()
        ),
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            "the certificate of the peer is not for this use: its extended key usage lacks \
             serverAuth or clientAuth"
                .into()
        }
        E::Other(error) => error.to_string(),
        // Issuers are found by their names.
        E::BadSignature => "the certificate of the peer is signed by an unknown CA, which has the \
                            name of a known one; give the CA that signed it"
            .into(),
        error => format!("the certificate of the peer is invalid: {error:?}"),
    }
}

fn date(seconds: u64) -> String {
    let time = ASN1Time::from_timestamp(i64::try_from(seconds).unwrap_or(i64::MAX));
    time.map_or_else(|_| format!("{seconds} s after 1970"), |time| time.to_string())
}
