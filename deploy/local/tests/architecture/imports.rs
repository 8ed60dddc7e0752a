//! The imports between the modules of a crate, read from its sources.
//!
//! A path counts as an import of the module that defines its item: names that a
//! module only re-exports count for the module that defines them. Code of tests does not count.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, Item, ItemMod, ItemUse, UseTree,
    visit::{self, Visit},
};

/// The path of a module within its crate. The root is empty.
type ModulePath = Vec<String>;

/// Imports between modules of one parent: from which to which, and the files that have them.
type Imports = BTreeMap<(String, String), BTreeSet<(PathBuf, PathBuf)>>;

/// Modules of one parent that import from each other in a circle.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Circle {
    /// Path of the parent; empty for the root of the crate.
    pub parent: String,
    /// Names of the modules.
    pub members: Vec<String>,
    /// The imports: from which file, and from which other one it takes names.
    pub ties: Vec<(PathBuf, PathBuf)>,
}

/// Longest chain of re-exports that is followed.
const MAX_REEXPORTS: usize = 16;

/// The modules of a crate.
pub(crate) struct Crate {
    modules: BTreeMap<ModulePath, Module>,
}

/// A module: a file, or a block within one.
#[derive(Default)]
struct Module {
    file: PathBuf,
    /// Names that `use` binds, with the paths that they stand for.
    bindings: BTreeMap<String, Vec<String>>,
    /// Modules whose names are all imported.
    globs: Vec<Vec<String>>,
    /// Names that are defined here.
    items: BTreeSet<String>,
    /// Paths in the code.
    paths: BTreeSet<Vec<String>>,
}

impl Crate {
    /// Reads a crate from its root file, such as `src/lib.rs`.
    pub(crate) fn read(root: &Path) -> Self {
        let mut modules = BTreeMap::new();
        read_file(&mut modules, Vec::new(), root, root.parent().expect("a file is in a folder"));
        Self { modules }
    }

    /// The number of files.
    pub(crate) fn num_files(&self) -> usize {
        self.modules.values().map(|module| &module.file).collect::<BTreeSet<_>>().len()
    }

    /// The circles among the modules that have the same parent, each with all modules below it. What
    /// a module takes from those around it is no import: it is a part of them.
    pub(crate) fn circles(&self) -> Vec<Circle> {
        self.rooms().into_iter().flat_map(|(parent, imports)| circles(&parent, &imports)).collect()
    }

    /// By parent: the imports between its children, and the files that have them.
    fn rooms(&self) -> BTreeMap<ModulePath, Imports> {
        let mut rooms: BTreeMap<ModulePath, Imports> = BTreeMap::new();
        for (path, module) in &self.modules {
            for used in module.bindings.values().chain(&module.globs).chain(&module.paths) {
                let Some((target, _)) = self.resolve(path, used, MAX_REEXPORTS) else { continue };
                let shared = path.iter().zip(&target).take_while(|(a, b)| a == b).count();
                let (Some(from), Some(to)) = (path.get(shared), target.get(shared)) else {
                    continue;
                };
                let imports = rooms.entry(path[..shared].to_vec()).or_default();
                let files = imports.entry((from.clone(), to.clone())).or_default();
                files.insert((module.file.clone(), self.modules[&target].file.clone()));
            }
        }
        rooms
    }

    /// The module that `path`, seen from `module`, leads to, and whether the path names that module
    /// itself. None for paths of other crates.
    fn resolve(
        &self,
        module: &ModulePath,
        path: &[String],
        depth: usize,
    ) -> Option<(ModulePath, bool)> {
        let depth = depth.checked_sub(1)?;
        let (first, mut rest) = path.split_first()?;
        let mut at = match first.as_str() {
            "crate" => Vec::new(),
            "self" => module.clone(),
            "super" => module.split_last()?.1.to_vec(),
            _ => {
                // A name of the module itself, which may be that of another crate.
                let own = [module.clone(), vec![first.clone()]].concat();
                if self.modules.contains_key(&own) {
                    own
                } else {
                    let bound = self.modules[module].bindings.get(first)?;
                    if bound == path || bound.first() == Some(first) {
                        return None;
                    }
                    let (target, is_module) = self.resolve(module, bound, depth)?;
                    if !is_module {
                        return Some((target, false));
                    }
                    target
                }
            }
        };
        while let Some((name, following)) = rest.split_first() {
            if name == "super" {
                at.pop()?;
                rest = following;
                continue;
            }
            let child = [at.clone(), vec![name.clone()]].concat();
            if self.modules.contains_key(&child) {
                at = child;
                rest = following;
                continue;
            }
            // A re-exported module is followed further.
            let named = self.modules[&at].bindings.get(name);
            return match named.and_then(|path| self.resolve(&at, path, depth)) {
                Some((module, true)) => {
                    let rest = [vec!["self".to_owned()], following.to_vec()].concat();
                    self.resolve(&module, &rest, depth)
                }
                _ => Some((self.definition(&at, name, depth)?, false)),
            };
        }
        Some((at, true))
    }

    /// The module that defines `name`, seen in `module`.
    fn definition(&self, module: &ModulePath, name: &str, depth: usize) -> Option<ModulePath> {
        let depth = depth.checked_sub(1)?;
        let here = &self.modules[module];
        if here.items.contains(name) {
            return Some(module.clone());
        }
        if let Some(bound) = here.bindings.get(name) {
            // A name of another crate that is handed on counts for the module that does so.
            return Some(
                self.resolve(module, bound, depth).map_or(module.clone(), |(found, _)| found),
            );
        }
        for glob in &here.globs {
            if let Some((target, true)) = self.resolve(module, glob, depth)
                && target != *module
                && (self.modules[&target].items.contains(name)
                    || self.modules[&target].bindings.contains_key(name))
            {
                return self.definition(&target, name, depth);
            }
        }
        Some(module.clone())
    }
}

/// The circles among the children of `parent`: groups of modules each of which imports from all
/// others, directly or through others.
fn circles(parent: &ModulePath, imports: &Imports) -> Vec<Circle> {
    let reached = |from: &String| {
        let mut found = BTreeSet::new();
        let mut next = vec![from];
        while let Some(module) = next.pop() {
            for (_, to) in imports.keys().filter(|(from, _)| from == module) {
                if found.insert(to.clone()) {
                    next.push(to);
                }
            }
        }
        found
    };
    let modules: BTreeSet<_> = imports.keys().map(|(from, _)| from).collect();
    let reached: BTreeMap<_, _> =
        modules.into_iter().map(|module| (module.clone(), reached(module))).collect();
    let members: BTreeSet<BTreeSet<&String>> = reached
        .iter()
        .filter(|(module, found)| found.contains(*module))
        .map(|(module, found)| {
            found
                .iter()
                .filter(|other| reached.get(*other).is_some_and(|f| f.contains(module)))
                .collect()
        })
        .collect();
    let circle = |members: BTreeSet<&String>| Circle {
        parent: parent.join("::"),
        ties: imports
            .iter()
            .filter(|((from, to), _)| members.contains(from) && members.contains(to))
            .flat_map(|(_, files)| files.iter().cloned())
            .collect(),
        members: members.into_iter().cloned().collect(),
    };
    members.into_iter().map(circle).collect()
}

fn read_file(
    modules: &mut BTreeMap<ModulePath, Module>,
    path: ModulePath,
    file: &Path,
    folder: &Path,
) {
    let text =
        fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let parsed =
        syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    read_items(modules, path, file, folder, &parsed.items);
}

fn read_items(
    modules: &mut BTreeMap<ModulePath, Module>,
    path: ModulePath,
    file: &Path,
    folder: &Path,
    items: &[Item],
) {
    let mut module = Module { file: file.to_owned(), ..Module::default() };
    for item in items {
        if let Item::Mod(child) = item {
            if is_test(&child.attrs) {
                continue;
            }
            let name = child.ident.to_string();
            let own = [path.clone(), vec![name.clone()]].concat();
            let folder = folder.join(&name);
            match child {
                ItemMod { content: Some((_, items)), .. } => {
                    read_items(modules, own, file, &folder, items);
                }
                _ => {
                    let flat = folder.with_extension("rs");
                    let nested = folder.join("mod.rs");
                    let file = if flat.exists() { flat } else { nested };
                    // The file of another platform may be absent.
                    if file.exists() {
                        read_file(modules, own, &file, &folder);
                    }
                }
            }
        } else {
            module.visit_item(item);
        }
    }
    modules.insert(path, module);
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|cfg| cfg.is_ident("test"))
    })
}

impl Module {
    fn bind(&mut self, prefix: &[String], tree: &UseTree) {
        let with = |name: String| [prefix.to_vec(), vec![name]].concat();
        match tree {
            UseTree::Path(path) => self.bind(&with(path.ident.to_string()), &path.tree),
            UseTree::Name(name) if name.ident == "self" => {
                if let Some(last) = prefix.last() {
                    self.bindings.insert(last.clone(), prefix.to_vec());
                }
            }
            UseTree::Name(name) => {
                let name = name.ident.to_string();
                self.bindings.insert(name.clone(), with(name));
            }
            UseTree::Rename(rename) if rename.ident == "self" => {
                self.bindings.insert(rename.rename.to_string(), prefix.to_vec());
            }
            UseTree::Rename(rename) => {
                // Several items may be imported without a name.
                let bound = match rename.rename.to_string().as_str() {
                    "_" => format!("_{}", self.bindings.len()),
                    name => name.to_owned(),
                };
                self.bindings.insert(bound, with(rename.ident.to_string()));
            }
            UseTree::Glob(_) => self.globs.push(prefix.to_vec()),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.bind(prefix, tree)),
        }
    }
}

impl<'ast> Visit<'ast> for Module {
    fn visit_item(&mut self, item: &'ast Item) {
        let (name, attributes) = match item {
            Item::Const(item) => (Some(&item.ident), &item.attrs),
            Item::Enum(item) => (Some(&item.ident), &item.attrs),
            Item::Fn(item) => (Some(&item.sig.ident), &item.attrs),
            Item::Static(item) => (Some(&item.ident), &item.attrs),
            Item::Struct(item) => (Some(&item.ident), &item.attrs),
            Item::Trait(item) => (Some(&item.ident), &item.attrs),
            Item::Type(item) => (Some(&item.ident), &item.attrs),
            Item::Union(item) => (Some(&item.ident), &item.attrs),
            Item::Macro(item) => (item.ident.as_ref(), &item.attrs),
            Item::Impl(item) => (None, &item.attrs),
            Item::Use(item) => (None, &item.attrs),
            _ => return visit::visit_item(self, item),
        };
        if is_test(attributes) {
            return;
        }
        self.items.extend(name.map(ToString::to_string));
        visit::visit_item(self, item);
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.bind(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path.segments.iter().map(|segment| segment.ident.to_string());
        let segments: Vec<_> = segments.collect();
        if segments.len() > 1 {
            self.paths.insert(segments);
        }
        visit::visit_path(self, path);
    }

    /// Paths in macros count if they begin with `crate` or `super`.
    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        let text = called.tokens.to_string();
        let text = text.replace(" :: ", "::").replace(":: ", "::").replace(" ::", "::");
        for root in ["crate::", "super::"] {
            for (at, _) in text.match_indices(root) {
                let path =
                    text[at..].split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
                let path = path.take(1).flat_map(|path| path.split("::")).map(str::to_owned);
                self.paths.insert(path.filter(|name| !name.is_empty()).collect());
            }
        }
        visit::visit_macro(self, called);
    }
}
