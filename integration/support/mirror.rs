//! The lake of a bucket, copied into a folder, for whoever reads folders.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use futures::TryStreamExt;
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::S3;

/// See the module's head.
#[derive(Debug)]
pub struct Mirror {
    store: AmazonS3,
    prefix: Path,
    folder: PathBuf,
    /// What the bucket says of an object changes with its bytes.
    copied: BTreeMap<Path, (Option<String>, String)>,
}

impl Mirror {
    /// Nothing is copied yet.
    pub fn new(bucket: &str, folder: PathBuf) -> Self {
        Self { store: S3::client(bucket), prefix: Path::from("team/lake"), folder, copied: BTreeMap::new() }
    }

    /// Brings the folder to what is in the bucket now.
    pub async fn renew(&mut self) {
        let found: Vec<_> = self.store.list(Some(&self.prefix)).try_collect().await.unwrap();
        let mut gone = std::mem::take(&mut self.copied);
        for object in found {
            let version = (object.e_tag, object.last_modified.to_rfc3339());
            let known = gone.remove(&object.location);
            if known.as_ref() != Some(&version) {
                match self.store.get(&object.location).await {
                    Ok(read) => {
                        let path = self.path(&object.location);
                        fs::create_dir_all(path.parent().unwrap()).unwrap();
                        fs::write(path, read.bytes().await.unwrap()).unwrap();
                    }
                    // It was removed since.
                    Err(object_store::Error::NotFound { .. }) => {
                        gone.insert(object.location, version);
                        continue;
                    }
                    Err(error) => panic!("{}: {error}", object.location),
                }
            }
            self.copied.insert(object.location, version);
        }
        for path in gone.keys() {
            let _ = fs::remove_file(self.path(path));
        }
    }

    fn path(&self, location: &Path) -> PathBuf {
        let below: Vec<_> = location.prefix_match(&self.prefix).unwrap().collect();
        below.iter().fold(self.folder.clone(), |path, part| path.join(part.as_ref()))
    }
}
