//! Compares the contract with `proto/api.binpb`, the descriptors that were last agreed on, so that
//! a change of the contract is a deliberate one. After such a change, run this test with
//! `STOKER_UPDATE_CONTRACT=1` and commit the file.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{collections::BTreeSet, env, fs};

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};
use stoker_proto::FILE_DESCRIPTOR_SET;

const AGREED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/api.binpb");

/// The files of the contract itself, without comments and positions.
fn contract() -> FileDescriptorSet {
    let mut set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    set.file.retain(|file| file.name().starts_with("stoker/"));
    set.file.iter_mut().for_each(|file| file.source_code_info = None);
    set.file.sort_by(|one, other| one.name().cmp(other.name()));
    set
}

/// Each message, field, enum value and method as a line.
fn lines(set: &FileDescriptorSet) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for file in &set.file {
        let package = file.package();
        file.message_type.iter().for_each(|message| of_message(&mut lines, package, message));
        file.enum_type.iter().for_each(|values| of_enum(&mut lines, package, values));
        file.service.iter().for_each(|service| of_service(&mut lines, package, service));
    }
    lines
}

fn of_message(lines: &mut BTreeSet<String>, parent: &str, message: &DescriptorProto) {
    let name = format!("{parent}.{}", message.name());
    lines.insert(format!("message {name}"));
    for field in &message.field {
        let kind = field.type_name.clone().unwrap_or_else(|| field.r#type().as_str_name().into());
        let label = field.label().as_str_name();
        let oneof = field.oneof_index.and_then(|i| message.oneof_decl.get(i as usize));
        let oneof = oneof.map_or("", |oneof| oneof.name());
        lines.insert(format!(
            "{name}.{} = {} {label} {kind} {oneof}",
            field.name(),
            field.number()
        ));
    }
    message.nested_type.iter().for_each(|nested| of_message(lines, &name, nested));
    message.enum_type.iter().for_each(|values| of_enum(lines, &name, values));
}

fn of_enum(lines: &mut BTreeSet<String>, parent: &str, values: &EnumDescriptorProto) {
    for value in &values.value {
        let (name, number) = (value.name(), value.number());
        lines.insert(format!("enum {parent}.{}.{name} = {number}", values.name()));
    }
}

fn of_service(lines: &mut BTreeSet<String>, package: &str, service: &ServiceDescriptorProto) {
    for method in &service.method {
        let stream = |streams: bool| if streams { "stream " } else { "" };
        lines.insert(format!(
            "rpc {package}.{}.{}({}{}) returns ({}{})",
            service.name(),
            method.name(),
            stream(method.client_streaming()),
            method.input_type(),
            stream(method.server_streaming()),
            method.output_type(),
        ));
    }
}

#[test]
fn the_contract_is_the_agreed_one() {
    let now = contract();
    if env::var_os("STOKER_UPDATE_CONTRACT").is_some() {
        fs::write(AGREED, now.encode_to_vec()).unwrap();
    }
    let agreed = FileDescriptorSet::decode(&*fs::read(AGREED).unwrap()).unwrap();
    let (before, after) = (lines(&agreed), lines(&now));
    assert!(after.len() > 100, "{} lines is not all of the contract", after.len());
    let removed: Vec<_> = before.difference(&after).collect();
    let added: Vec<_> = after.difference(&before).collect();
    let how = "if that is meant, run with STOKER_UPDATE_CONTRACT=1 and commit proto/api.binpb";
    assert!(
        removed.is_empty() && added.is_empty(),
        "removed {removed:#?}, added {added:#?}; {how}"
    );
    assert!(agreed == now, "an option or a default of the contract differs; {how}");
}

#[test]
fn every_difference_is_seen() {
    let change = |change: fn(&mut FileDescriptorProto)| {
        let mut set = contract();
        change(&mut set.file[1]);
        set
    };
    let changes: [fn(&mut FileDescriptorProto); 5] = [
        |file| file.message_type[0].field[0].number = Some(99),
        |file| file.message_type[0].field[0].name = Some("renamed".into()),
        |file| drop(file.message_type[0].field.pop()),
        |file| drop(file.message_type.pop()),
        |file| file.service[0].method[0].name = Some("Renamed".into()),
    ];
    let now = lines(&contract());
    for (i, of) in changes.into_iter().enumerate() {
        assert_ne!(lines(&change(of)), now, "change {i}");
    }
}
