//! Listen addresses: host names, all interfaces, and errors for invalid addresses.

use crate::support::{Process, channel, program};

/// Every flag with a listen address, after the program and its other required arguments.
const FLAGS: [&[&str]; 5] = [
    &["stoker-router", "--workers", "a:1", "--listen"],
    &["stoker-router", "--workers", "a:1", "--listen", "127.0.0.1:0", "--metrics-listen"],
    &["stoker-worker", "--simulate", "instant", "--listen"],
    &["stoker-worker", "--simulate", "instant", "--listen", "127.0.0.1:0", "--metrics-listen"],
    &["stoker", "serve", "--listen"],
];

/// Returns the standard error of a program that refuses its address.
fn refused(words: &[&str], address: &str) -> String {
    let output = program(words[0]).args(&words[1..]).arg(address).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{words:?} {address}: {error}");
    error
}

#[test]
fn an_invalid_address_is_refused_with_its_flag_and_the_expected_form() {
    for words in FLAGS {
        for (address, what) in [
            ("localhost", "the port is missing"),
            ("127.0.0.1", "the port is missing"),
            ("127.0.0.1:65536", "the port `65536` is not a number"),
            ("::1:50051", "an IPv6 address needs brackets"),
            ("[]:1", "the host is empty"),
            ("http://localhost:50051", "this is a URL; leave out `http://`"),
        ] {
            let error = refused(words, address);
            let flag = format!("'{address}' for '{} <ADDR>'", words[words.len() - 1]);
            for part in [&*flag, what, "write HOST:PORT, for instance 127.0.0.1:50051"] {
                assert!(error.contains(part), "{part}: {error}");
            }
        }
        // Valid, but not resolvable.
        let error = refused(words, "no-such-host.invalid:0");
        let flag = words[words.len() - 1];
        let what = format!("{flag} no-such-host.invalid:0: the host name does not resolve (");
        assert!(error.contains(&what), "{error}");
    }
}

#[tokio::test]
async fn names_and_all_interfaces_become_real_addresses() {
    for (address, expected) in
        [("localhost:0", &["127.0.0.1:", "[::1]:"][..]), (":0", &["[::]:", "0.0.0.0:"])]
    {
        let both = ["--listen", address, "--metrics-listen", address];
        for (name, flags) in [
            ("stoker-router", &["--workers", "a:1", "--allow-anonymous"][..]),
            ("stoker-worker", &["--simulate", "instant"]),
        ] {
            let process = Process::start(name, &[flags, &both, &["--allow-plaintext"]].concat());
            let metrics = process.metrics.clone().unwrap();
            for address in [&process.address, metrics.strip_prefix("http://").unwrap()] {
                assert!(expected.iter().any(|start| address.starts_with(start)), "{address}");
                assert!(!address.ends_with(":0"), "{address}");
            }
            // Reachable over IPv4, also if the socket is an IPv6 one.
            let port = process.address.rsplit(':').next().unwrap();
            channel(&format!("127.0.0.1:{port}")).await;
        }
    }
}
