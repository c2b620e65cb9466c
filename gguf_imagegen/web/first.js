// What the form needs of the server, asked for while the rest of the page is still coming.

import { call } from "./api.js";

/** The models, those of this machine unless `path` says otherwise, whose key this is, and the files beside the models. */
export const news = (path = "/v1/models") => Promise.all([call("GET", path), call("GET", "/v1/me"), call("GET", "/v1/addons")]);

export const first = news();
first.catch(() => {}); // whoever takes it says what went wrong
