//! Documents byte by byte, for what the driver would not make.

use bson::{RawDocumentBuf, rawdoc};

use super::Site;

/// An element of a document: its BSON type, name and bytes.
pub fn element(kind: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[kind][..], name, b"\0", value].concat()
}

/// The document of these elements.
pub fn document(elements: &[Vec<u8>]) -> RawDocumentBuf {
    let body = elements.concat();
    let length = i32::try_from(body.len() + 5).unwrap();
    RawDocumentBuf::from_bytes([&length.to_le_bytes()[..], &body, b"\0"].concat()).unwrap()
}

/// An element that is a text.
pub fn text(name: &str, value: &[u8]) -> Vec<u8> {
    let length = i32::try_from(value.len() + 1).unwrap();
    element(2, name.as_bytes(), &[&length.to_le_bytes()[..], value, b"\0"].concat())
}

/// Inserts a document that the driver may be unable to read.
pub async fn insert_raw(site: &Site, name: &str, document: RawDocumentBuf) {
    let collection = site.at(name).namespace();
    let insert = rawdoc! { "insert": collection.coll.as_str(), "documents": [document] };
    let reply = site.client(name).database(&collection.db).run_raw_command(insert).await.unwrap();
    assert!(!reply.contains_key("writeErrors"), "{reply}");
}
