//! `#[derive(Row)]` for Changeover: the columns of a struct, in the order of its fields.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::quote;
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Fields, Ident, LitStr, Type};

/// Derives `changeover::Row`.
///
/// On the struct, `#[row(table = "name")]`. On fields: `#[row(key)]` for each part of the key (at least one),
/// `#[row(index)]` for a secondary index, `#[row(column = "name")]` for a column that is not called as the field is.
#[proc_macro_derive(Row, attributes(row))]
pub fn derive_row(input: TokenStream) -> TokenStream {
    let input = syn::parse_macro_input!(input as DeriveInput);
    row(&input).unwrap_or_else(Error::into_compile_error).into()
}

struct Column<'a> {
    field: &'a Ident,
    ty: &'a Type,
    name: String,
    key: bool,
    index: bool,
}

fn row(input: &DeriveInput) -> Result<Tokens, Error> {
    let Data::Struct(data) = &input.data else {
        return Err(Error::new(input.span(), "a row is a struct with named fields"));
    };
    let Fields::Named(fields) = &data.fields else {
        return Err(Error::new(input.span(), "a row is a struct with named fields"));
    };
    if !input.generics.params.is_empty() {
        return Err(Error::new(input.generics.span(), "a row has no parameters: its columns are fixed"));
    }
    let table = table_name(input)?;
    let columns = fields.named.iter().map(column).collect::<Result<Vec<_>, Error>>()?;
    let keys: Vec<&Column<'_>> = columns.iter().filter(|column| column.key).collect();
    let (key_type, key, same) = match &keys[..] {
        [] => return Err(Error::new(input.span(), "a row needs at least one #[row(key)]")),
        [key] => {
            let (ty, field) = (key.ty, key.field);
            (quote!(#ty), quote!(::core::clone::Clone::clone(&self.#field)), quote!(self.#field == *key))
        }
        keys if keys.len() <= 4 => {
            let (types, fields) = (keys.iter().map(|k| k.ty), keys.iter().map(|k| k.field));
            let same = keys.iter().enumerate().map(|(at, column)| {
                let (field, at) = (column.field, syn::Index::from(at));
                quote!(self.#field == key.#at)
            });
            (
                quote!((#(#types),*)),
                quote!((#(::core::clone::Clone::clone(&self.#fields)),*)),
                quote!(#(#same)&&*),
            )
        }
        [.., last] => return Err(Error::new(last.field.span(), "a key has at most four parts")),
    };

    let row = &input.ident;
    let definitions = columns.iter().map(|Column { ty, name, key, index, .. }| {
        quote!(::changeover::ColumnDefinition::of::<#ty>(#name, #key, #index))
    });
    let values = columns.iter().map(|column| column.field);
    let reads =
        columns.iter().enumerate().map(|(at, Column { field, .. })| quote!(#field: row.try_get(#at)?));
    Ok(quote! {
        impl ::changeover::Row for #row {
            type Key = #key_type;
            const TABLE: &'static str = #table;

            fn columns() -> ::std::vec::Vec<::changeover::ColumnDefinition> {
                ::std::vec![#(#definitions),*]
            }

            fn key(&self) -> Self::Key {
                #key
            }

            fn has_key(&self, key: &Self::Key) -> bool {
                #same
            }

            fn values(&self) -> ::std::vec::Vec<&(dyn ::changeover::ToSql + ::core::marker::Sync)> {
                ::std::vec![#(&self.#values),*]
            }

            fn from_row(
                row: &::changeover::tokio_postgres::Row,
            ) -> ::core::result::Result<Self, ::changeover::tokio_postgres::Error> {
                ::core::result::Result::Ok(Self { #(#reads),* })
            }
        }
    })
}

fn table_name(input: &DeriveInput) -> Result<String, Error> {
    let mut table = None;
    for attribute in input.attrs.iter().filter(|attribute| attribute.path().is_ident("row")) {
        attribute.parse_nested_meta(|meta| {
            if !meta.path.is_ident("table") {
                return Err(meta.error("expected `table = \"name\"`"));
            }
            table = Some(meta.value()?.parse::<LitStr>()?);
            Ok(())
        })?;
    }
    let table = table.ok_or_else(|| Error::new(input.span(), "a row needs #[row(table = \"name\")]"))?;
    checked(&table.value()).map_err(|reason| Error::new(table.span(), reason))
}

fn column(field: &syn::Field) -> Result<Column<'_>, Error> {
    let ident = field.ident.as_ref().expect("a named field has a name");
    let mut column = Column {
        field: ident,
        ty: &field.ty,
        name: ident.to_string().trim_start_matches("r#").to_owned(),
        key: false,
        index: false,
    };
    for attribute in field.attrs.iter().filter(|attribute| attribute.path().is_ident("row")) {
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("key") {
                column.key = true;
            } else if meta.path.is_ident("index") {
                column.index = true;
            } else if meta.path.is_ident("column") {
                column.name = meta.value()?.parse::<LitStr>()?.value();
            } else {
                return Err(meta.error("expected `key`, `index` or `column = \"name\"`"));
            }
            Ok(())
        })?;
    }
    checked(&column.name).map_err(|reason| Error::new(ident.span(), reason))?;
    Ok(column)
}

/// PostgreSQL cuts longer names off in silence, and two of them might become one.
fn checked(name: &str) -> Result<String, &'static str> {
    if name.is_empty() || name.len() > 63 || name.contains('\0') {
        return Err("a name in PostgreSQL has 1 to 63 bytes");
    }
    Ok(name.to_owned())
}
