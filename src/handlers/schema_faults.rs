//! What a JSON Schema finds wrong, as places and sentences.

use jsonschema::{
    ValidationError,
    error::{TypeKind, ValidationErrorKind},
};
use serde_json::Value;

use crate::job::json::push_pointer;

/// The faults that an error is about: JSON pointers and sentences. `whole`: what was checked.
pub(crate) fn of(error: &ValidationError<'_>, whole: &Value) -> Vec<(String, String)> {
    let place = error.instance_path().to_string();
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected }
        | ValidationErrorKind::UnevaluatedProperties { unexpected } => unexpected_at(&place, unexpected),
        // Where no property is known, the validator names the object instead of those that it has.
        ValidationErrorKind::FalseSchema if error.schema_path().as_str().ends_with("/additionalProperties") => {
            let names = whole.pointer(&place).and_then(Value::as_object).into_iter().flatten().map(|(name, _)| name);
            unexpected_at(&place, names)
        }
        ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
            of_forms(&place, context, whole)
        }
        _ => vec![(place, error.to_string())],
    }
}

fn unexpected_at<'a>(place: &str, names: impl IntoIterator<Item = &'a String>) -> Vec<(String, String)> {
    let one = |name: &String| {
        let mut pointer = place.to_owned();
        push_pointer(&mut pointer, name);
        (pointer, format!("Additional properties are not allowed ('{name}' was unexpected)"))
    };
    names.into_iter().map(one).collect()
}

/// Of a value that has none of several forms. A form of another type altogether is not what was meant.
fn of_forms(place: &str, forms: &[Vec<ValidationError<'_>>], whole: &Value) -> Vec<(String, String)> {
    let is_other = |error: &ValidationError<'_>| types_of(error).is_some() && error.instance_path().as_str() == place;
    let near: Vec<&Vec<ValidationError<'_>>> = forms.iter().filter(|form| !form.iter().any(is_other)).collect();
    if let [one] = near[..] {
        return one.iter().flat_map(|error| of(error, whole)).collect();
    }
    if near.is_empty() {
        let mut types: Vec<&str> = forms.iter().flatten().filter_map(types_of).flatten().collect();
        types.retain(|name| *name != "null");
        types.dedup();
        return vec![(
            place.to_owned(),
            format!("must be of type {}", or(types.iter().map(|name| format!("{name:?}")))),
        )];
    }
    let constant = |form: &&Vec<ValidationError<'_>>| match form.as_slice() {
        [error] => match error.kind() {
            ValidationErrorKind::Constant { expected_value } => Some(expected_value.to_string()),
            _ => None,
        },
        _ => None,
    };
    let message = match near.iter().map(constant).collect::<Option<Vec<_>>>() {
        Some(constants) => format!("must be {}", or(constants.into_iter())),
        None => {
            let all = near.iter().map(|form| {
                let told: Vec<String> = form
                    .iter()
                    .flat_map(|error| of(error, whole))
                    .map(|(at, message)| within(place, &at, message))
                    .collect();
                told.join(" and ")
            });
            format!("has none of the forms that are taken: {}", or(all))
        }
    };
    vec![(place.to_owned(), message)]
}

/// A fault of a part, told of the whole.
fn within(place: &str, at: &str, message: String) -> String {
    match at.strip_prefix(place).filter(|below| !below.is_empty()) {
        Some(below) => format!("{below}: {message}"),
        None => message,
    }
}

/// The types that were wanted, where the type was wrong.
fn types_of(error: &ValidationError<'_>) -> Option<Vec<&'static str>> {
    match error.kind() {
        ValidationErrorKind::Type { kind: TypeKind::Single(one) } => Some(vec![one.as_str()]),
        ValidationErrorKind::Type { kind: TypeKind::Multiple(set) } => {
            Some(set.iter().map(|one| one.as_str()).collect())
        }
        _ => None,
    }
}

fn or(parts: impl Iterator<Item = String>) -> String {
    let parts: Vec<String> = parts.collect();
    match parts.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => parts.concat(),
    }
}
