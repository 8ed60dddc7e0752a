//! The characters and the setting of a story: names, kinds, pronouns and places that match.

use super::grammar::Slots;
use crate::rng::SeededRng;

const GIRLS: &[&str] = &[
    "Mia", "Lily", "Anna", "Rosa", "Ella", "Nina", "Sara", "Lucy", "Maya", "Ivy", "Zoe", "Emma",
    "Clara", "Ruby", "Tess", "Amy", "Leila", "Nora", "Jane", "Molly", "Lena", "Grace",
];
const BOYS: &[&str] = &[
    "Tom", "Ben", "Max", "Leo", "Sam", "Finn", "Jack", "Noah", "Oscar", "Theo", "Will", "Hugo",
    "Tim", "Omar", "Luke", "Adam", "Henry", "Milo", "Peter", "Jonas", "Eli", "Ravi",
];
const SHE_ANIMALS: &[&str] = &[
    "Daisy", "Poppy", "Hazel", "Clover", "Fern", "Willow", "Maple", "Dot", "Olive", "Pearl",
    "Bella", "Honey", "Rosie", "Tansy", "Luna", "Penny", "Minnie", "Plum",
];
const HE_ANIMALS: &[&str] = &[
    "Pip", "Moss", "Bramble", "Rusty", "Bean", "Tuck", "Barley", "Biscuit", "Button", "Fred",
    "Gus", "Toby", "Otto", "Bruno", "Ollie", "Jasper", "Hob", "Monty",
];
const ANIMALS: &[&str] = &[
    "fox", "rabbit", "bear", "mouse", "hedgehog", "squirrel", "badger", "otter", "mole", "beaver",
    "raccoon", "deer", "cat", "puppy", "lamb", "goat", "duck", "frog", "turtle", "owl",
];
/// A home for animals, a home for children, and places near both.
const SETTINGS: &[(&str, &str, &[&str])] = &[
    (
        "in a cozy burrow under an old oak tree",
        "in a little cottage at the edge of the woods",
        &[
            "the old bridge",
            "the berry bushes",
            "the tall pine trees",
            "the quiet pond",
            "the mossy stones",
        ],
    ),
    (
        "in a small den beside a river",
        "in a house with a blue door beside a river",
        &[
            "the water mill",
            "the willow tree",
            "the stepping stones",
            "the old boat",
            "the sandy bank",
        ],
    ),
    (
        "in a warm barn on a farm",
        "on a small farm with a red barn",
        &["the apple trees", "the haystack", "the duck pond", "the old well", "the garden gate"],
    ),
    (
        "in a snug hole on a green hill",
        "in a white house on a green hill",
        &["the stone wall", "the windmill", "the flower field", "the big rock", "the winding path"],
    ),
    (
        "in a cave near the sea",
        "in a tiny house near the sea",
        &["the lighthouse", "the beach", "the tide pools", "the little harbor", "the sand dunes"],
    ),
    (
        "in a nest of leaves behind a village",
        "in a small village between two mountains",
        &[
            "the market square",
            "the fountain",
            "the bakery",
            "the school garden",
            "the stone bridge",
        ],
    ),
];
/// A grown-up, and whether the pronoun is "she".
const ELDERS: &[(&str, bool)] = &[
    ("Grandma", true),
    ("Grandpa", false),
    ("Mama", true),
    ("Papa", false),
    ("Aunt May", true),
    ("Uncle Joe", false),
];

/// Returns the slots that every plot may use: hero, friend, second friend, grown-up, home and three
/// places.
pub fn cast(rng: &mut SeededRng) -> Slots {
    let mut slots = Slots::new();
    let hero = character(rng, &[], &[], None);
    let friend = character(rng, &[&hero.name], &[&hero.kind], None);
    let other =
        character(rng, &[&hero.name, &friend.name], &[&hero.kind, &friend.kind], Some(false));
    add(&mut slots, "hero", "", &hero);
    add(&mut slots, "friend", "f", &friend);
    add(&mut slots, "other", "o", &other);

    let (elder, she) = rng.pick(ELDERS);
    slots.insert("elder".into(), (*elder).into());
    pronouns(&mut slots, "e", *she);

    let (burrow, house, places) = rng.pick(SETTINGS);
    slots.insert("home".into(), (if hero.child { house } else { burrow }).to_string());
    let first = rng.below(places.len());
    for (i, slot) in ["place", "place2", "place3"].into_iter().enumerate() {
        slots.insert(slot.into(), places[(first + i) % places.len()].into());
    }
    slots
}

struct Character {
    name: String,
    kind: String,
    she: bool,
    child: bool,
}

/// Returns a random character whose name and kind are not among the given ones. `child` chooses
/// between a child and an animal; by default the choice is random.
fn character(
    rng: &mut SeededRng,
    names: &[&str],
    kinds: &[&str],
    child: Option<bool>,
) -> Character {
    let child = child.unwrap_or_else(|| rng.chance(0.45));
    let she = rng.chance(0.5);
    let pool = match (child, she) {
        (true, true) => GIRLS,
        (true, false) => BOYS,
        (false, true) => SHE_ANIMALS,
        (false, false) => HE_ANIMALS,
    };
    let free = |options: &[&'static str], taken: &[&str], rng: &mut SeededRng| loop {
        let option = *rng.pick(options);
        if !taken.contains(&option) {
            return option.to_owned();
        }
    };
    let kind = match (child, she) {
        (true, true) => "girl".into(),
        (true, false) => "boy".into(),
        (false, _) => free(ANIMALS, kinds, rng),
    };
    Character { name: free(pool, names, rng), kind, she, child }
}

/// Adds the slots of one character: the name as `role`, all others with `prefix`.
fn add(slots: &mut Slots, role: &str, prefix: &str, character: &Character) {
    let Character { name, kind, she, child } = character;
    slots.insert(role.into(), name.clone());
    slots.insert(format!("{prefix}kind"), kind.clone());
    let title = if *child { name.clone() } else { format!("{name} the {kind}") };
    slots.insert(format!("{prefix}title"), title);
    pronouns(slots, prefix, *she);
}

fn pronouns(slots: &mut Slots, prefix: &str, she: bool) {
    let words =
        if she { ["she", "her", "her", "herself"] } else { ["he", "him", "his", "himself"] };
    for (slot, word) in ["he", "him", "his", "himself"].into_iter().zip(words) {
        slots.insert(format!("{prefix}{slot}"), word.into());
    }
}
