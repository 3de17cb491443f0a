//! Parts into the lake: those that were made, and between them those of the day before that are taken over.
//!
//! Names follow from how many parts lie before, so this goes stretch by stretch, in the order of keys, while later ones
//! are still made. What was made is read from the scratch folder again, and its checksum compared: it may have lain
//! there for hours. What is taken over is copied in the end, several parts at once.

use std::fs::File;
use std::io::Read;
use std::ops::Range;

use bytes::Bytes;
use object_store::PutPayload;
use object_store::path::Path;
use sha2::{Digest, Sha256};

use crate::batch::Format;
use crate::change::{Ds, TableName};
use crate::runtime::Result;

use super::super::layout::{Layout, part_name};
use super::super::manifest::{CopiedFrom, Manifest, PartFile};
use super::super::scratch::{altered, failed};
use super::super::store::hexadecimal;
use super::blocking::{Blocking, Carried};
use super::parts::LocalPart;

/// Bytes of the pieces in which a part is held on its way.
const PIECE_BYTES: usize = 4 << 20;

/// The parts of a day as they come.
pub(super) struct Placer {
    pub(super) store: Blocking,
    pub(super) layout: Layout,
    pub(super) table: TableName,
    pub(super) ds: Ds,
    pub(super) format: Format,
    /// So far.
    pub(super) parts: Vec<PartFile>,
}

impl Placer {
    /// Takes over parts of the day before.
    pub(super) fn carry(&mut self, manifest: &Manifest, parts: Range<usize>) {
        for part in &manifest.files[parts] {
            let copied_from = Some(CopiedFrom { ds: manifest.ds, path: part.path.clone() });
            self.parts.push(PartFile { path: self.next_name(), copied_from, as_of: None, ..part.clone() });
        }
    }

    /// Puts a part that was made. Its file is removed from the scratch folder.
    pub(super) fn put(&mut self, part: LocalPart) -> Result<()> {
        let file = PartFile { path: self.next_name(), ..part.file };
        let bytes = read(&part.path, &file)?;
        let manifest = self.layout.manifest(&self.table, self.ds);
        self.store.put_unpublished(&self.path(&file), &bytes, &manifest)?;
        self.parts.push(file);
        std::fs::remove_file(&part.path).map_err(|error| failed("remove", &part.path, error))
    }

    /// Copies what is taken over.
    pub(super) fn finish(self) -> Result<Vec<PartFile>> {
        let carried = |part: &PartFile| {
            let from = part.copied_from.as_ref()?;
            Some(Carried {
                from: self.layout.snapshot_object(&self.table, from.ds, &from.path),
                to: self.path(part),
                bytes: part.bytes,
                sha256: part.sha256.clone(),
            })
        };
        let manifest = self.layout.manifest(&self.table, self.ds);
        self.store.copy_unpublished(self.parts.iter().filter_map(carried).collect(), &manifest)?;
        Ok(self.parts)
    }

    fn next_name(&self) -> String {
        part_name(self.parts.len(), self.format.extension())
    }

    fn path(&self, file: &PartFile) -> Path {
        self.layout.snapshot_object(&self.table, self.ds, &file.path)
    }
}

/// A part of the scratch folder, in pieces: one buffer that grows would at times hold three times as much.
fn read(path: &std::path::Path, part: &PartFile) -> Result<PutPayload> {
    let failed = |error| failed("read", path, error);
    let mut file = File::open(path).map_err(failed)?;
    let (mut pieces, mut hash) = (Vec::new(), Sha256::new());
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES.min(part.bytes as usize));
        file.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut piece).map_err(failed)?;
        if piece.is_empty() {
            break;
        }
        hash.update(&piece);
        pieces.push(Bytes::from(piece));
    }
    if hexadecimal(&hash.finalize()) != part.sha256 {
        return Err(altered(path, "its SHA-256 is another one"));
    }
    Ok(PutPayload::from_iter(pieces))
}
