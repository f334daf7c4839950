//! The shop: its routes, the checker of the demo, and the demo itself in small.

mod checker;
mod demo;
mod routes;
mod shops;
