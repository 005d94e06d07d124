//! `GET /v1/models` and `GET /v1/models/{model}`.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};

use super::super::error::{ApiError, ErrorBody};
use super::super::failures::ReadFailures;
use super::super::state::AppState;
use super::super::wire::other::{Model, ModelList};

/// Lists the served model and its aliases.
#[utoipa::path(
    get,
    path = "/v1/models",
    operation_id = "listModels",
    tag = "Models",
    responses((status = 200, description = "The models that can be asked for.", body = ModelList), ReadFailures)
)]
pub(crate) async fn list(State(state): State<AppState>) -> Json<ModelList> {
    let card = state.card();
    let names = std::iter::once(&card.id).chain(card.aliases.iter().filter(|alias| **alias != card.id));
    Json(ModelList { object: "list", data: names.map(|name| model(&state, name)).collect() })
}

/// Describes one model. Slashes in its id may stand as they are or as `%2F`.
#[utoipa::path(
    get,
    path = "/v1/models/{model}",
    operation_id = "retrieveModel",
    tag = "Models",
    params(("model" = String, Path, description = "The model's id or one of its aliases.", example = "canvasd-demo")),
    responses(
        (status = 200, description = "The model.", body = Model),
        (status = 400, description = "The id is not UTF-8.", body = ErrorBody),
        ReadFailures
    )
)]
pub(crate) async fn retrieve(
    State(state): State<AppState>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let Path(id) = id.map_err(|_| ApiError::invalid("model", "The model's id in the path must be UTF-8."))?;
    state.check_model(Some(&id))?;
    Ok(Json(model(&state, &id)))
}

fn model(state: &AppState, name: &str) -> Model {
    let limits = state.engine().limits();
    Model {
        id: name.to_owned(),
        object: "model",
        created: state.started(),
        owned_by: "canvasd",
        root: state.card().id.clone(),
        max_model_len: limits.context,
        canvas_length: limits.canvas,
    }
}
