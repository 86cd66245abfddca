//! `/docs`: the OpenAPI document as a page, drawn here so that it needs neither script nor network; and `/problems/…`,
//! where the `type` of every problem leads.

use std::{fmt::Write, sync::LazyLock};

use axum::response::{IntoResponse, Redirect, Response};
use serde_json::Value;

use super::{
    html::{self, escape},
    openapi::DOCUMENT,
    query::Segment,
    refusal::Answer,
};
use crate::ops::{ApiError, Code};

pub async fn page() -> Response {
    static BODY: LazyLock<String> = LazyLock::new(|| draw(&DOCUMENT));
    html::page("API of queue-service", &BODY)
}

pub async fn problem(Segment(name): Segment) -> Answer {
    if Code::ALL.into_iter().any(|code| anchor(code) == name) {
        return Ok(Redirect::to(&format!("/docs#{name}")).into_response());
    }
    let known = Code::ALL.map(anchor).join(", ");
    Err(ApiError::new(Code::NotFound, format!("there is no such problem; there are {known}")).into())
}

fn anchor(code: Code) -> String {
    code.as_str().replace('_', "-")
}

fn draw(document: &Value) -> String {
    let mut out = String::from("<h1>API</h1>\n");
    let about = document["info"]["description"].as_str().unwrap_or_default();
    // Writing into a String can't fail, here and below.
    let _ = writeln!(out, "<p>{} <a href=\"/openapi.json\">openapi.json</a></p>", prose(about));
    for group in ["Jobs", "Work", "Types", "Service"] {
        let _ = writeln!(out, "<h2>{group}</h2>");
        for (path, methods) in document["paths"].as_object().into_iter().flatten() {
            for (method, operation) in methods.as_object().into_iter().flatten() {
                if operation["tags"][0] == group {
                    operation_of(&mut out, method, path, operation);
                }
            }
        }
    }
    out.push_str("<h2>Schemas</h2>\n");
    for (name, schema) in document["components"]["schemas"].as_object().into_iter().flatten() {
        let name = escape(name);
        let _ = writeln!(out, "<details id=\"{name}\"><summary>{name}</summary>{}</details>", listing(schema));
    }
    problems(&mut out);
    out
}

fn operation_of(out: &mut String, method: &str, path: &str, operation: &Value) {
    let text = |value: &Value| escape(value.as_str().unwrap_or_default());
    let told = |value: &Value| prose(value.as_str().unwrap_or_default());
    let _ = writeln!(
        out,
        "<details id=\"{}\"><summary><span class=\"method\">{}</span><code>{}</code> \
         <span class=\"soft\">{}</span></summary>",
        text(&operation["operationId"]),
        method.to_uppercase(),
        escape(path),
        told(&operation["summary"]),
    );
    let parameters = operation["parameters"].as_array();
    if let Some(parameters) = parameters {
        out.push_str("<h3>Parameters</h3><table><tr><th>name<th>in<th>meaning\n");
        for parameter in parameters {
            let (name, place) = (text(&parameter["name"]), text(&parameter["in"]));
            let about = told(&parameter["description"]);
            let _ = writeln!(out, "<tr><td><code>{name}</code><td>{place}<td>{about}");
        }
        out.push_str("</table>\n");
    }
    let body = &operation["requestBody"]["content"]["application/json"];
    if let Some(reference) = body["schema"]["$ref"].as_str() {
        let _ = writeln!(out, "<h3>Body: {}</h3>{}", link(reference), listing(&body["example"]));
    }
    out.push_str("<h3>Answers</h3><table><tr><th>status<th>meaning<th>content\n");
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        let about = told(&response["description"]);
        let content = response["content"].as_object().and_then(|content| content.iter().next());
        let (kind, reference) = match content {
            Some((kind, content)) => (escape(kind), content["schema"]["$ref"].as_str().map(link)),
            None => (String::new(), None),
        };
        let _ = writeln!(out, "<tr><td>{status}<td>{about}<td>{}", reference.unwrap_or(kind));
    }
    out.push_str("</table></details>\n");
}

/// A sentence with `names` in it.
fn prose(text: &str) -> String {
    let parts = text.split('`').enumerate();
    parts.map(|(i, part)| if i % 2 == 1 { format!("<code>{}</code>", escape(part)) } else { escape(part) }).collect()
}

fn link(reference: &str) -> String {
    let name = escape(reference.rsplit('/').next().unwrap_or_default());
    format!("<a href=\"#{name}\">{name}</a>")
}

fn listing(value: &Value) -> String {
    format!("<pre>{}</pre>", escape(&format!("{value:#}")))
}

fn problems(out: &mut String) {
    out.push_str("<h2>Problems</h2>\n<table><tr><th>code<th>status<th>meaning\n");
    for code in Code::ALL {
        let _ = writeln!(
            out,
            "<tr id=\"{}\"><td><code>{}</code><td>{}<td>{}",
            anchor(code),
            code.as_str(),
            code.status(),
            escape(code.title())
        );
    }
    out.push_str("</table>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_every_operation_and_every_link_in_it_leads_somewhere() {
        let html = draw(&DOCUMENT);
        for method in DOCUMENT["paths"].as_object().unwrap().values().flat_map(|m| m.as_object().unwrap().values()) {
            let id = method["operationId"].as_str().unwrap();
            assert!(html.contains(&format!("id=\"{id}\"")), "{id}");
        }
        for target in html.split("href=\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(html.contains(&format!("id=\"{target}\"")), "{target}");
        }
        assert!(!html.contains("<script"));
    }

    #[test]
    fn every_problem_has_a_place_to_read_about_it() {
        for code in Code::ALL {
            assert_eq!(ApiError::new(code, "").problem().r#type, format!("/problems/{}", anchor(code)));
        }
    }
}
