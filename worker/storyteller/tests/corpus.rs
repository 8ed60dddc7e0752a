//! The corpus: the same for the same seed, never twice the same, and consistent within a story.
#![allow(clippy::unwrap_used)] // A test that cannot read its grammar should stop there.

use std::collections::HashSet;

use storyteller::{
    corpus::{
        Storyteller,
        grammar::{GrammarError, Plot, Rules, Slots},
    },
    dice::Dice,
};

fn stories(seed: u64, count: u64) -> Vec<String> {
    let storyteller = Storyteller::new().unwrap();
    (0..count).map(|index| storyteller.story(seed, index).unwrap()).collect()
}

#[test]
fn the_same_seed_tells_the_same_stories() {
    assert_eq!(stories(7, 50), stories(7, 50));
    assert_ne!(stories(7, 50), stories(8, 50));
}

#[test]
fn two_thousand_stories_are_two_thousand_different_ones() {
    let stories = stories(1, 2_000);
    assert_eq!(stories.iter().collect::<HashSet<_>>().len(), stories.len());
    let openings: HashSet<&str> =
        stories.iter().map(|story| story.split_once('.').unwrap().0).collect();
    assert!(openings.len() > 1_500, "only {} openings", openings.len());
    let once = stories.iter().filter(|story| story.starts_with("Once upon a time")).count();
    assert!((500..1_200).contains(&once), "{once} begin with Once upon a time");
}

#[test]
fn held_out_stories_are_not_learned_from() {
    let learned: HashSet<String> = stories(1, 5_000).into_iter().collect();
    assert!(stories(2, 500).iter().all(|story| !learned.contains(story)));
}

#[test]
fn the_hero_of_the_opening_is_there_at_the_end() {
    let storyteller = Storyteller::new().unwrap();
    let mut named = 0;
    for index in 0..1_000 {
        let (story, slots) = storyteller.tell(3, index).unwrap();
        let (beginning, ending) = story.rsplit_once("\n\n").unwrap();
        let hero = &slots["hero"];
        assert!(beginning.contains(hero), "no {hero} in {beginning:?} of:\n{story}");
        named += usize::from(ending.contains(hero));
    }
    // The rest are feasts and such, where "they" are together.
    assert!(named > 950, "only {named} of 1000 endings name their hero");
}

#[test]
fn the_thing_of_the_beginning_is_what_the_story_ends_with() {
    let storyteller = Storyteller::new().unwrap();
    let with_thing = (0..1_000).filter(|&index| {
        let (story, slots) = storyteller.tell(3, index).unwrap();
        let Some(thing) = slots.get("thing") else { return false };
        let paragraphs: Vec<&str> = story.split("\n\n").collect();
        assert!(paragraphs[0].contains(thing), "no {thing} in the beginning of:\n{story}");
        assert!(
            paragraphs[1..].iter().any(|part| part.contains(thing)),
            "no {thing} again in:\n{story}"
        );
        true
    });
    assert!(with_thing.count() > 200);
}

#[test]
fn stories_are_clean_text_of_a_sensible_length() {
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
fn a_sentence_never_says_a_before_a_vowel() {
    for story in stories(5, 1_000) {
        for wrong in
            [" a apple", " a old", " a orange", " a umbrella", " a otter", " a owl", " an ball"]
        {
            assert!(!story.contains(wrong), "{wrong:?} in:\n{story}");
        }
    }
}

#[test]
fn broken_grammar_is_refused_with_the_reason() {
    let refused = |plot: &str| {
        let told = Plot::parse(plot)
            .and_then(|plot| plot.tell(&Rules::default(), &mut Slots::new(), &mut Dice::new(1)));
        told.unwrap_err()
    };
    assert_eq!(refused("a [b|c"), GrammarError::Unbalanced('[', "a [b|c".into()));
    assert_eq!(refused("a b]"), GrammarError::Unbalanced(']', "a b]".into()));
    assert_eq!(refused("{nobody} came"), GrammarError::UnknownSlot("nobody".into()));
    assert_eq!(refused("@nothing came"), GrammarError::UnknownRule("nothing".into()));
    assert_eq!(refused("let a, b = x"), GrammarError::MalformedLet("let a, b = x".into()));
}

#[test]
fn choices_slots_and_articles_are_filled_in() {
    let plot =
        Plot::parse("let thing, place = apple ; [here|here]\n\n{a thing} is {place}. {A thing}!")
            .unwrap();
    let told = plot.tell(&Rules::default(), &mut Slots::new(), &mut Dice::new(1)).unwrap();
    assert_eq!(told, "An apple is here. An apple!");
}
