//! The shop: its routes, the checker of the demo, the demo itself in small, and what the pages and manifests say can be typed.

mod checker;
mod command_lines;
mod demo;
mod routes;
mod shops;
