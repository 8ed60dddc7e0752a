//! Encoded requests as a worker receives them from a router: validation against its model,
//! tokenisation, and the state of a response that another worker began. A digest of `=` stands for
//! that of the model.
//!
//! Must hold: no panic; memory is at most 16 MiB and 64 bytes for each byte of the request; what is
//! admitted fits the worker, each choice that is resumed has a valid state, and a request that is
//! admitted without its state is never the client's fault with it.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{Corpus, fuzz_target};
use prost::Message;
use stoker_chat_template::Renderer;
use stoker_engine::{Model, Request};
use stoker_fuzz::{bounded, keep_panics, uncaught};
use stoker_proto::v1::{GenerateRequest, Resume};
use stoker_shared::ServiceError;
use stoker_worker::{ModelSource, WorkerConfig, admit::Admission, load};

/// The bundled model, whose context is 1,024 tokens.
static MODEL: LazyLock<Model> = LazyLock::new(|| {
    load(&ModelSource::Bundled, &WorkerConfig::default(), 1).expect("the bundled model is valid")
});
static TEMPLATES: LazyLock<Renderer> = LazyLock::new(|| MODEL.chat_templates.compile());

/// Tokens and sequences of the worker. It is smaller than the context of its model.
const CAPACITY: usize = 256;
const SEQUENCES: usize = 4;

fuzz_target!(init: start(), |data: &[u8]| -> Corpus {
    let Ok(mut request) = GenerateRequest::decode(data) else { return Corpus::Reject };
    if let Some(resume) = resume(&mut request).filter(|resume| resume.digest == "=") {
        resume.digest.clone_from(&MODEL.digest);
    }
    uncaught(|| bounded((16 << 20) + 64 * data.len(), || check(request)));
    Corpus::Keep
});

fn start() {
    keep_panics();
    LazyLock::force(&TEMPLATES);
}

fn resume(request: &mut GenerateRequest) -> Option<&mut Resume> {
    request.routing.as_mut()?.resume.as_mut()
}

fn admit(request: GenerateRequest) -> Result<Request, ServiceError> {
    let admission = Admission {
        model: &MODEL,
        templates: &TEMPLATES,
        name: "storyteller",
        max_sequence_tokens: CAPACITY,
        max_num_seqs: SEQUENCES,
    };
    admission.admit(request)
}

fn check(mut request: GenerateRequest) {
    let result = admit(request.clone());
    let has_state = resume(&mut request).is_some();
    if let Some(routing) = &mut request.routing {
        routing.resume = None;
    }
    let fresh = admit(request);
    match (result, fresh) {
        (Ok(admitted), fresh) => {
            check_admitted(&admitted);
            // Without its state, a response may have another limit, which does not fit this worker.
            let exceeds = matches!(fresh, Err(ServiceError::ExceedsWorker { .. }));
            assert!(fresh.is_ok() || (has_state && exceeds), "{:?}", fresh.err());
        }
        (Err(error), Ok(_)) => {
            use ServiceError::{ExceedsWorker, Mismatch};
            let of_worker = matches!(error, ExceedsWorker { .. } | Mismatch(_));
            assert!(has_state && of_worker, "{error:?}");
        }
        (Err(_), Err(_)) => {}
    }
}

fn check_admitted(request: &Request) {
    let vocabulary = MODEL.config.vocab_size;
    let max_tokens = request.stopping.max_tokens.expect("a worker decides the limit");
    assert!(!request.prompt.is_empty() && max_tokens > 0);
    assert!(request.prompt.len() + max_tokens <= CAPACITY);
    assert!(request.stopping.min_tokens <= MODEL.config.context_length);
    assert!(request.prompt.iter().all(|id| (*id as usize) < vocabulary));
    assert!((1..=SEQUENCES).contains(&(request.num_sequences.get() as usize)));
    let choices = request.resumed.len();
    assert!(choices == 0 || choices == request.num_sequences.get() as usize);
    for resumed in &request.resumed {
        assert!(resumed.tokens.len() <= max_tokens);
        assert!(resumed.tokens.iter().all(|id| (*id as usize) < vocabulary));
    }
    // An ended response is not resumed.
    assert!(choices == 0 || request.resumed.iter().any(|resumed| !resumed.ended));
}
