//! The corpus: reproducible by seed, without duplicates, and consistent within a story.
#![allow(clippy::unwrap_used)] // A test may panic.

use std::collections::HashSet;

use storyteller::{
    corpus::{
        Storyteller,
        grammar::{GrammarError, Plot, Rules, Slots},
    },
    rng::SeededRng,
};

fn stories(seed: u64, count: u64) -> Vec<String> {
    let storyteller = Storyteller::new().unwrap();
    (0..count).map(|index| storyteller.story(seed, index).unwrap()).collect()
}

#[test]
fn the_same_seed_gives_the_same_stories() {
    assert_eq!(stories(7, 50), stories(7, 50));
    assert_ne!(stories(7, 50), stories(8, 50));
}

#[test]
fn stories_are_distinct_and_their_openings_vary() {
    let stories = stories(1, 2_000);
    assert_eq!(stories.iter().collect::<HashSet<_>>().len(), stories.len());
    let openings: HashSet<&str> =
        stories.iter().map(|story| story.split_once('.').unwrap().0).collect();
    assert!(openings.len() > 1_500, "only {} openings", openings.len());
    let once = stories.iter().filter(|story| story.starts_with("Once upon a time")).count();
    assert!((500..1_200).contains(&once), "{once} start with Once upon a time");
}

#[test]
fn held_out_stories_are_not_in_the_training_corpus() {
    let training: HashSet<String> = stories(1, 5_000).into_iter().collect();
    assert!(stories(2, 500).iter().all(|story| !training.contains(story)));
}

#[test]
fn the_hero_appears_at_the_start_and_at_the_end() {
    let storyteller = Storyteller::new().unwrap();
    let mut named = 0;
    for index in 0..1_000 {
        let (story, slots) = storyteller.story_and_slots(3, index).unwrap();
        let (start, ending) = story.rsplit_once("\n\n").unwrap();
        let hero = &slots["hero"];
        assert!(start.contains(hero), "no {hero} in {start:?} of:\n{story}");
        named += usize::from(ending.contains(hero));
    }
    // Other endings, for instance of feasts, say "they".
    assert!(named > 950, "only {named} of 1000 endings name their hero");
}

#[test]
fn the_thing_of_the_first_paragraph_appears_again() {
    let storyteller = Storyteller::new().unwrap();
    let with_thing = (0..1_000).filter(|&index| {
        let (story, slots) = storyteller.story_and_slots(3, index).unwrap();
        let Some(thing) = slots.get("thing") else { return false };
        let paragraphs: Vec<&str> = story.split("\n\n").collect();
        assert!(paragraphs[0].contains(thing), "no {thing} in the first paragraph of:\n{story}");
        assert!(
            paragraphs[1..].iter().any(|paragraph| paragraph.contains(thing)),
            "no {thing} after the first paragraph of:\n{story}"
        );
        true
    });
    assert!(with_thing.count() > 200);
}

#[test]
fn stories_are_clean_text_of_80_to_320_words() {
    for story in stories(4, 1_000) {
        let words = story.split_whitespace().count();
        assert!((80..320).contains(&words), "{words} words:\n{story}");
        assert!(!story.contains(['[', ']', '{', '}', '@', '|', ';']), "{story}");
        assert!(!story.contains("  ") && !story.contains(" .") && !story.contains(".."), "{story}");
        assert!(story.ends_with(['.', '!', '?', '"']), "{story}");
        assert_eq!(story.matches('"').count() % 2, 0, "{story}");
        for (before, after) in story.split(". ").zip(story.split(". ").skip(1)) {
            assert!(!after.starts_with(char::is_lowercase), "after {before:?}: {after:?}");
        }
    }
}

#[test]
fn articles_match_the_next_word() {
    for story in stories(5, 1_000) {
        for wrong in
            [" a apple", " a old", " a orange", " a umbrella", " a otter", " a owl", " an ball"]
        {
            assert!(!story.contains(wrong), "{wrong:?} in:\n{story}");
        }
    }
}

#[test]
fn invalid_grammar_is_rejected_with_the_reason() {
    let error = |plot: &str| {
        let story = Plot::parse(plot).and_then(|plot| {
            plot.generate(&Rules::default(), &mut Slots::new(), &mut SeededRng::new(1))
        });
        story.unwrap_err()
    };
    assert_eq!(error("a [b|c"), GrammarError::Unbalanced('[', "a [b|c".into()));
    assert_eq!(error("a b]"), GrammarError::Unbalanced(']', "a b]".into()));
    assert_eq!(error("{unset} came"), GrammarError::UnknownSlot("unset".into()));
    assert_eq!(error("@undefined came"), GrammarError::UnknownRule("undefined".into()));
    assert_eq!(error("let a, b = x"), GrammarError::MalformedLet("let a, b = x".into()));
}

#[test]
fn choices_slots_and_articles_are_expanded() {
    let plot =
        Plot::parse("let thing, place = apple ; [here|here]\n\n{a thing} is {place}. {A thing}!")
            .unwrap();
    let story =
        plot.generate(&Rules::default(), &mut Slots::new(), &mut SeededRng::new(1)).unwrap();
    assert_eq!(story, "An apple is here. An apple!");
}
