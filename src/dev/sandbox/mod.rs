//! The outside world on one machine and without a network: a mailbox, a place for webhooks, a provider of the OpenAI
//! shape and a web site to crawl, all over their real protocols. Only `queue-service dev` and tests start it.
//!
//! It listens on free ports of the loopback. Whatever it keeps is bounded and gone when it is dropped.

mod ai;
pub mod demo;
mod mail;
pub(crate) mod mime;
mod page;
mod ring;
mod site;
pub mod smtp;
mod vectors;
pub mod webhooks;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    config::{AllowPrivate, Config},
    supervise,
};
use page::{page, table};
use smtp::{Rules, Sink};
use webhooks::Webhooks;

/// A mailbox that does not exist; mail to it fails for good.
pub const REFUSED_MAILBOX: &str = "nobody@example.com";

/// A running sandbox; it ends when it is dropped.
pub struct Sandbox {
    shared: Arc<Shared>,
    servers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Where [`Sandbox::router`] is served.
    address: SocketAddr,
    site: SocketAddr,
    smtp: Sink,
    webhooks: Arc<Webhooks>,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.servers.iter().for_each(JoinHandle::abort);
    }
}

impl Sandbox {
    /// # Errors
    /// No free port on the loopback.
    pub async fn start() -> io::Result<Self> {
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listen = || TcpListener::bind(free);
        let (pages, site) = (listen().await?, listen().await?);
        let smtp = Sink::start(free).await?;
        let refuse = [(REFUSED_MAILBOX.to_owned(), "550 5.1.1 the sandbox has no such mailbox".to_owned())].into();
        smtp.set_rules(Rules { refuse, ..Rules::default() });
        let shared = Arc::new(Shared {
            address: pages.local_addr()?,
            site: site.local_addr()?,
            smtp,
            webhooks: Arc::new(Webhooks::new()),
        });
        let app = router(shared.clone()).layer(middleware::from_fn(only_loopback_names));
        let servers = vec![serve(pages, app), serve(site, site::router())];
        Ok(Self { shared, servers })
    }

    /// The pages under `/dev`, for a door that wants to show them on its own address too. It is the door's to guard
    /// them.
    pub fn router(&self) -> Router {
        router(self.shared.clone())
    }

    /// The address of a path of the sandbox, `/dev/webhooks/x` for instance.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.shared.address)
    }

    /// The start page of the web site.
    pub fn site_url(&self) -> String {
        format!("http://{}/", self.shared.site)
    }

    /// The mail server, to read what came or to let it misbehave.
    pub fn smtp(&self) -> &Sink {
        &self.shared.smtp
    }

    /// Points `config` at the sandbox wherever nothing else was chosen. `is_set` tells whether a key, such as
    /// `webhook.allow_private`, was set by somebody, even to its default; a value other than the default counts as set
    /// in any case.
    pub fn apply(&self, config: &mut Config, is_set: impl Fn(&str) -> bool) {
        if config.smtp.url.is_none() && !is_set("smtp.url") {
            config.smtp.url = Some(self.shared.smtp.url().into());
        }
        if config.ai.base_url.is_none() && !is_set("ai.base_url") {
            config.ai.base_url = Some(self.url(ai::ROOT));
        }
        let loopback =
            || AllowPrivate::Only(["127.0.0.0/8", "::1/128"].iter().filter_map(|n| n.parse().ok()).collect());
        for (key, allow) in [
            ("webhook.allow_private", &mut config.webhook.allow_private),
            ("crawl.allow_private", &mut config.crawl.allow_private),
            // A first handler over HTTP is a program on this machine.
            ("handlers.allow_private", &mut config.handlers.allow_private),
        ] {
            if *allow == AllowPrivate::default() && !is_set(key) {
                *allow = loopback();
            }
        }
    }
}

fn router(shared: Arc<Shared>) -> Router {
    let (webhooks, smtp) = (shared.webhooks.clone(), shared.smtp.clone());
    let to_site = format!("http://{}/", shared.site);
    Router::new()
        .route("/dev", get(index))
        .route("/dev/site", get(move || async move { Redirect::temporary(&to_site) }))
        .route(page::STYLE_PATH, get(page::style))
        .with_state(shared)
        .merge(mail::router(smtp))
        .merge(webhooks::router(webhooks))
        .merge(ai::router())
}

async fn index(State(shared): State<Arc<Shared>>) -> Response {
    let link = |path: &str| format!("<a href=\"{path}\">{path}</a>");
    let rows = [
        ("mailbox", link("/dev/mail"), format!("what send-email sent to <code>{}</code>", shared.smtp.url())),
        ("webhooks", link("/dev/webhooks"), "what webhook-delivery delivered".to_owned()),
        ("web site", link("/dev/site"), format!("to crawl: <code>http://{}/</code>", shared.site)),
        ("AI provider", format!("<code>{}</code>", ai::ROOT), {
            format!("of the OpenAI shape: <code>http://{}{}</code>; not a real model", shared.address, ai::ROOT)
        }),
    ];
    let rows = rows.into_iter().map(|(name, path, what)| vec![name.to_owned(), path, what]);
    page("Sandbox", &table(&["", "where", "what"], rows))
}

fn serve(listener: TcpListener, app: Router) -> JoinHandle<()> {
    supervise::spawn("sandbox", async move {
        if let Err(e) = axum::serve(listener, app).await {
            tracing::error!("the sandbox stopped listening: {e}");
        }
    })
}

/// A page on the internet can have its own name resolve to the loopback and then read the mailbox. Its requests carry
/// that name.
async fn only_loopback_names(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    match matches!(name, "127.0.0.1" | "localhost" | "[::1]") {
        true => next.run(request).await,
        false => (StatusCode::FORBIDDEN, "the sandbox answers to 127.0.0.1 and localhost only\n").into_response(),
    }
}

#[cfg(test)]
mod tests;
