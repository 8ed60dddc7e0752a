//! Several choices, log probabilities and penalties, over gRPC and through the router.

use std::collections::BTreeMap;

use futures::StreamExt;
use stoker::cluster::Cluster;
use stoker_proto::v1::{
    Finished, GenerateRequest, GenerateResponse, ResponseOptions, Sampling, Stopping, TokenLogprob,
    generate_response::Event,
};
use stoker_router::RouterConfig;
use stoker_worker::{ModelSource, WorkerConfig};
use tonic::{Code, Status};

use crate::support::{cluster, complete, inference, request};

/// One choice of a response.
#[derive(Debug, Default, Clone, PartialEq)]
struct Choice {
    ids: Vec<u32>,
    text: String,
    logprobs: Vec<TokenLogprob>,
    finished: Option<Finished>,
}

/// A response with several choices.
#[derive(Debug, Default)]
struct MultiChoiceCompletion {
    prompt: Vec<TokenLogprob>,
    choices: BTreeMap<u32, Choice>,
    /// The stream's last event.
    last: Option<Event>,
}

async fn complete_choices(
    cluster: &Cluster,
    request: GenerateRequest,
) -> Result<MultiChoiceCompletion, Status> {
    let mut client = inference(&cluster.address().to_string()).await;
    let mut stream = client.generate(request).await?.into_inner();
    let mut completion = MultiChoiceCompletion::default();
    while let Some(response) = stream.next().await {
        let GenerateResponse { choice, event, .. } = response?;
        completion.last.clone_from(&event);
        match event.unwrap() {
            Event::Accepted(_) => continue,
            Event::Preempted(_) => {}
            Event::Prompt(logprobs) => {
                assert!(completion.choices.is_empty(), "the prompt comes before the first token");
                completion.prompt.extend(logprobs.tokens);
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

/// A request for three choices with all optional outputs.
fn three_choices(tokens: u32) -> GenerateRequest {
    let plain = request("Once upon a time", 11, tokens);
    let sampling = Sampling { num_sequences: Some(3), ..plain.sampling.clone().unwrap() };
    let response = ResponseOptions {
        output_logprobs: true,
        top_candidates: 4,
        prompt_logprobs: true,
        ..ResponseOptions::default()
    };
    GenerateRequest { sampling: Some(sampling), response: Some(response), ..plain }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_choices_with_log_probabilities() {
    let cluster = cluster(2).await;
    let completion = complete_choices(&cluster, three_choices(40)).await.unwrap();
    assert_eq!(completion.choices.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);

    // The first choice equals the completion of a request for one; the others are reproducible on
    // any worker too.
    let mut client = inference(&cluster.address().to_string()).await;
    let one = complete(&mut client, request("Once upon a time", 11, 40)).await.unwrap();
    assert_eq!((&completion.choices[&0].ids, &completion.choices[&0].text), (&one.ids, &one.text));
    assert!(
        completion.choices[&1].ids != one.ids
            && completion.choices[&1].ids != completion.choices[&2].ids
    );
    let again = complete_choices(&cluster, three_choices(40)).await.unwrap();
    for (choice, choice_result) in &completion.choices {
        assert_eq!(choice_result.ids, again.choices[choice].ids);
        assert_eq!(choice_result.logprobs, again.choices[choice].logprobs);
    }

    // Only the last event has usage and timings.
    let Some(Event::Finished(last)) = completion.last else { panic!("{:?}", completion.last) };
    let usage = last.usage.unwrap();
    assert_eq!(usage.prompt_tokens, one.accepted.prompt_tokens);
    assert_eq!(usage.completion_tokens, 3 * 40);
    assert!(last.timings.is_some_and(|timings| timings.total.is_some()));
    let summaries =
        completion.choices.values().filter(|c| c.finished.as_ref().unwrap().usage.is_some());
    assert_eq!(summaries.count(), 1);

    assert_eq!(completion.prompt.len() as u32, usage.prompt_tokens - 1);
    for choice_result in completion.choices.values() {
        let ids: Vec<_> = choice_result.logprobs.iter().map(|l| l.id).collect();
        assert_eq!(ids, choice_result.ids, "one for each id");
    }
    for l in completion.prompt.iter().chain(completion.choices.values().flat_map(|c| &c.logprobs)) {
        assert_eq!(l.top.len(), 4);
        assert!(l.top.is_sorted_by(|a, b| a.logprob >= b.logprob), "{l:?}");
        assert!(l.logprob <= l.top[0].logprob && l.top[0].logprob <= 0.0, "{l:?}");
        if let Some(same) = l.top.iter().find(|candidate| candidate.id == l.id) {
            assert_eq!(same.logprob, l.logprob);
        }
    }
    // Candidates have the text that they would add.
    let first = &completion.choices[&0].logprobs;
    let spelt = first.iter().filter_map(|l| l.top.iter().find(|c| c.id == l.id));
    let words: Vec<_> = spelt.map(|c| c.text.as_str()).collect();
    assert!(words.iter().any(|word| word.starts_with(' ')), "{words:?}");
    assert!(words.iter().all(|word| completion.choices[&0].text.contains(word)), "{words:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn logprobs_of_a_long_prompt_are_split_into_messages_of_default_size() {
    let cluster = cluster(1).await;
    let mut long = three_choices(2);
    let words = "the cat saw a dog and ran home. ".repeat(60);
    long.input = Some(stoker_proto::v1::generate_request::Input::Prompt(words));
    let completion = complete_choices(&cluster, long).await.unwrap();
    let Some(Event::Finished(last)) = completion.last else { panic!("{:?}", completion.last) };
    let prompt = last.usage.unwrap().prompt_tokens;
    assert!(prompt > 512, "this test needs several messages: {prompt}");
    assert_eq!(completion.prompt.len() as u32, prompt - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn penalties_bias_and_minimum_lengths_reach_the_engine() {
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
    assert_eq!(later.ids[..7], plain.ids[..7], "masking EOS changes no other token");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_choices_than_a_batch_holds_are_refused_by_field() {
    let any = ([127, 0, 0, 1], 0).into();
    let small = WorkerConfig { max_num_seqs: 2, ..WorkerConfig::default() };
    let cluster =
        Cluster::start(any, ModelSource::Bundled, 1, small, RouterConfig::default()).await.unwrap();
    let status = complete_choices(&cluster, three_choices(5)).await.unwrap_err();
    // A limit of the workers, not of the model.
    assert_eq!(status.code(), Code::ResourceExhausted);
    for part in ["sampling.num_sequences", "3 choices", "holds 2", "--max-num-seqs"] {
        assert!(status.message().contains(part), "{part} is missing: {status:?}");
    }
}
