//! What every handler can reach: the settings, the model's name and the ways to text and engine.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::aside::Aside;
use super::error::ApiError;
use super::meters::Meters;
use super::settings::ApiSettings;
use crate::prompt::Text;
use crate::scheduler::{Handle, Sampler};

/// The served model as clients know it.
#[derive(Debug, Clone)]
pub struct ModelCard {
    /// Its name; may hold slashes.
    pub id: String,
    /// Other names under which it answers.
    pub aliases: Vec<String>,
    /// How its canvases are denoised unless a request says otherwise.
    pub sampler: Sampler,
    /// What else its text depends on, such as its number formats; in no particular form.
    pub variant: String,
}

/// What every handler can reach. Cheap to clone.
#[derive(Clone)]
pub struct AppState(Arc<Inner>);

struct Inner {
    settings: ApiSettings,
    card: ModelCard,
    started: u64,
    fingerprint: String,
    text: Arc<Text>,
    engine: Handle,
    meters: Arc<Meters>,
    aside: Aside,
}

impl AppState {
    /// Puts the parts together.
    pub fn new(settings: ApiSettings, card: ModelCard, text: Arc<Text>, engine: Handle) -> AppState {
        // The standard hasher without a seed: the same for a build and a model, on every machine and at every start.
        let mut hasher = DefaultHasher::new();
        (env!("CARGO_PKG_VERSION"), &card.id, &card.variant, engine.limits().vocabulary).hash(&mut hasher);
        let fingerprint = format!("fp_{:016x}", hasher.finish());
        let meters = Arc::new(Meters::new());
        let aside = Aside::new();
        AppState(Arc::new(Inner { settings, card, started: unix_seconds(), fingerprint, text, engine, meters, aside }))
    }

    pub(crate) fn settings(&self) -> &ApiSettings {
        &self.0.settings
    }

    pub(crate) fn card(&self) -> &ModelCard {
        &self.0.card
    }

    /// Unix seconds of the server's start.
    pub(crate) fn started(&self) -> u64 {
        self.0.started
    }

    pub(crate) fn fingerprint(&self) -> &str {
        &self.0.fingerprint
    }

    pub(crate) fn text(&self) -> &Arc<Text> {
        &self.0.text
    }

    pub(crate) fn engine(&self) -> &Handle {
        &self.0.engine
    }

    pub(crate) fn meters(&self) -> &Arc<Meters> {
        &self.0.meters
    }

    /// The place for work that takes the processor for long.
    pub(crate) fn aside(&self) -> &Aside {
        &self.0.aside
    }

    /// Refuses a name that is not the model's.
    pub(crate) fn check_model(&self, asked: Option<&str>) -> Result<(), ApiError> {
        let card = self.card();
        match asked {
            Some(name) if name != card.id && !card.aliases.iter().any(|alias| alias == name) => {
                Err(ApiError::model_not_found(name, &card.id))
            }
            _ => Ok(()),
        }
    }
}

/// Now.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
