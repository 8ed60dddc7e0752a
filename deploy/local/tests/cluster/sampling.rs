//! Several continuations, log probabilities and penalties, over gRPC and through the router.

use std::collections::BTreeMap;

use futures::StreamExt;
use stoker::cluster::Cluster;
use stoker_proto::v1::{
    Finished, GenerateRequest, GenerateResponse, ResponseOptions, Sampling, Stopping, TokenLogprob,
    generate_response::Event,
};
use stoker_worker::{ModelSource, WorkerConfig};
use tonic::{Code, Status};

use crate::support::{cluster, complete, inference, request};

/// What came of one continuation.
#[derive(Debug, Default, Clone, PartialEq)]
struct Continuation {
    ids: Vec<u32>,
    text: String,
    logprobs: Vec<TokenLogprob>,
    finished: Option<Finished>,
}

/// An answer of several continuations.
#[derive(Debug, Default)]
struct Several {
    prompt: Vec<TokenLogprob>,
    choices: BTreeMap<u32, Continuation>,
    /// The stream's last event.
    last: Option<Event>,
}

async fn several(cluster: &Cluster, request: GenerateRequest) -> Result<Several, Status> {
    let mut client = inference(&cluster.address().to_string()).await;
    let mut stream = client.generate(request).await?.into_inner();
    let mut completion = Several::default();
    while let Some(response) = stream.next().await {
        let GenerateResponse { choice, event, .. } = response?;
        completion.last.clone_from(&event);
        match event.unwrap() {
            Event::Accepted(_) => continue,
            Event::Preempted(_) => {}
            Event::Prompt(part) => {
                assert!(completion.choices.is_empty(), "the prompt comes before the first token");
                completion.prompt.extend(part.tokens);
            }
            Event::Token(delta) => {
                let choice = completion.choices.entry(choice).or_default();
                assert!(choice.finished.is_none(), "nothing comes after the end");
                choice.ids.extend(delta.ids);
                choice.text.push_str(&delta.text);
                choice.logprobs.extend(delta.logprobs);
            }
            Event::Finished(end) => {
                completion.choices.get_mut(&choice).unwrap().finished = Some(end);
            }
        }
    }
    Ok(completion)
}

/// Three continuations with everything beside them.
fn three(tokens: u32) -> GenerateRequest {
    let plain = request("Once upon a time", 11, tokens);
    let sampling = Sampling { num_sequences: Some(3), ..plain.sampling.clone().unwrap() };
    let response =
        ResponseOptions { output_logprobs: true, top_candidates: 4, prompt_logprobs: true };
    GenerateRequest { sampling: Some(sampling), response: Some(response), ..plain }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_continuations_with_log_probabilities() {
    let cluster = cluster(2).await;
    let got = several(&cluster, three(40)).await.unwrap();
    assert_eq!(got.choices.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);

    // The first is what a request for one gets, and on any worker the others are the same too.
    let mut client = inference(&cluster.address().to_string()).await;
    let one = complete(&mut client, request("Once upon a time", 11, 40)).await.unwrap();
    assert_eq!((&got.choices[&0].ids, &got.choices[&0].text), (&one.ids, &one.text));
    assert!(got.choices[&1].ids != one.ids && got.choices[&1].ids != got.choices[&2].ids);
    let again = several(&cluster, three(40)).await.unwrap();
    for (choice, continuation) in &got.choices {
        assert_eq!(continuation.ids, again.choices[choice].ids);
        assert_eq!(continuation.logprobs, again.choices[choice].logprobs);
    }

    // Only the last event sums up.
    let Some(Event::Finished(last)) = got.last else { panic!("{:?}", got.last) };
    let usage = last.usage.unwrap();
    assert_eq!(usage.prompt_tokens, one.accepted.prompt_tokens);
    assert_eq!(usage.completion_tokens, 3 * 40);
    assert!(last.timings.is_some_and(|timings| timings.total.is_some()));
    let summaries = got.choices.values().filter(|c| c.finished.as_ref().unwrap().usage.is_some());
    assert_eq!(summaries.count(), 1);

    assert_eq!(got.prompt.len() as u32, usage.prompt_tokens - 1);
    for continuation in got.choices.values() {
        let ids: Vec<_> = continuation.logprobs.iter().map(|l| l.id).collect();
        assert_eq!(ids, continuation.ids, "one for each id");
    }
    for l in got.prompt.iter().chain(got.choices.values().flat_map(|c| &c.logprobs)) {
        assert_eq!(l.top.len(), 4);
        assert!(l.top.is_sorted_by(|a, b| a.logprob >= b.logprob), "{l:?}");
        assert!(l.logprob <= l.top[0].logprob && l.top[0].logprob <= 0.0, "{l:?}");
        if let Some(same) = l.top.iter().find(|candidate| candidate.id == l.id) {
            assert_eq!(same.logprob, l.logprob);
        }
    }
    // Candidates are spelt as they would read.
    let first = &got.choices[&0].logprobs;
    let spelt = first.iter().filter_map(|l| l.top.iter().find(|c| c.id == l.id));
    let words: Vec<_> = spelt.map(|c| c.text.as_str()).collect();
    assert!(words.iter().any(|word| word.starts_with(' ')), "{words:?}");
    assert!(words.iter().all(|word| got.choices[&0].text.contains(word)), "{words:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_prompt_is_told_in_parts_that_every_client_can_read() {
    let cluster = cluster(1).await;
    let mut long = three(2);
    let words = "the cat saw a dog and ran home. ".repeat(60);
    long.input = Some(stoker_proto::v1::generate_request::Input::Prompt(words));
    let got = several(&cluster, long).await.unwrap();
    let Some(Event::Finished(last)) = got.last else { panic!("{:?}", got.last) };
    let prompt = last.usage.unwrap().prompt_tokens;
    assert!(prompt > 512, "this test needs several parts: {prompt}");
    assert_eq!(got.prompt.len() as u32, prompt - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn penalties_bias_and_least_lengths_reach_the_engine() {
    let cluster = cluster(1).await;
    let mut client = inference(&cluster.address().to_string()).await;
    let greedy = |sampling: Sampling, stopping: Stopping| GenerateRequest {
        sampling: Some(Sampling { temperature: Some(0.0), ..sampling }),
        stopping: Some(stopping),
        ..request("Once upon a time", 0, 0)
    };
    let at_most = |max_tokens| Stopping { max_tokens: Some(max_tokens), ..Stopping::default() };

    let plain = complete(&mut client, greedy(Sampling::default(), at_most(60))).await.unwrap();
    for sampling in [
        Sampling { repetition_penalty: Some(1.5), ..Sampling::default() },
        Sampling { frequency_penalty: Some(1.5), ..Sampling::default() },
        Sampling { presence_penalty: Some(2.0), ..Sampling::default() },
    ] {
        let other = complete(&mut client, greedy(sampling.clone(), at_most(60))).await.unwrap();
        assert_ne!(other.ids, plain.ids, "{sampling:?}");
    }

    let info = crate::support::control(&cluster.address().to_string())
        .await
        .get_model_info(stoker_proto::v1::GetModelInfoRequest::default())
        .await
        .unwrap()
        .into_inner();
    let eos = info.eos_token_ids[0];
    let eager = Sampling { logit_bias: [(eos, 100.0)].into(), ..Sampling::default() };
    let at_once = complete(&mut client, greedy(eager.clone(), at_most(60))).await.unwrap();
    assert_eq!(at_once.ids, [eos]);
    let patient = Stopping { min_tokens: Some(7), ..at_most(60) };
    let later = complete(&mut client, greedy(eager, patient)).await.unwrap();
    assert_eq!((later.ids.len(), later.ids[7]), (8, eos));
    assert_eq!(later.ids[..7], plain.ids[..7], "what is masked moves nothing else");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_continuations_than_a_batch_holds_are_refused_by_name() {
    let any = ([127, 0, 0, 1], 0).into();
    let small = WorkerConfig { max_num_seqs: 2, ..WorkerConfig::default() };
    let cluster = Cluster::start(any, ModelSource::Bundled, 1, small).await.unwrap();
    let status = several(&cluster, three(5)).await.unwrap_err();
    // A limit of the workers, not of the model.
    assert_eq!(status.code(), Code::ResourceExhausted);
    for part in ["sampling.num_sequences", "3 choices", "holds 2", "--max-num-seqs"] {
        assert!(status.message().contains(part), "{part} is missing: {status:?}");
    }
}
