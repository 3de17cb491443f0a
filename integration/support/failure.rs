//! What a test that fails says last. The one program's output is long, and of a long output often only the end is kept:
//! there stand what failed, once more, and how to replay it.

use std::cell::RefCell;
use std::sync::Once;

/// More of a message is not told again.
const CHARS_MAX: usize = 3000;

thread_local! {
    static FAILED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Notes from now on what each test fails with.
pub fn watch() {
    static WATCHED: Once = Once::new();
    WATCHED.call_once(|| {
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            FAILED.with_borrow_mut(|failed| {
                failed.get_or_insert_with(|| panic.to_string().chars().take(CHARS_MAX).collect());
            });
            told(panic);
        }));
    });
}

/// Tells once more what this thread's test failed with.
pub fn tell_again() {
    if let Some(failed) = FAILED.take() {
        eprintln!("it failed, as said above: {failed}");
    }
}

/// How a randomised test is replayed: said when it begins, and when it has failed.
pub struct Replay(String);

impl Replay {
    pub fn with(how: String) -> Self {
        watch();
        eprintln!("replay with {how}");
        Self(how)
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tell_again();
            eprintln!("replay with {}", self.0);
        }
    }
}
