// What the browser keeps for this page: values in localStorage, those of this tab in
// sessionStorage, pictures in IndexedDB. All may be switched off.

const values = (area) => ({
  get(name, otherwise) {
    try {
      return JSON.parse(window[area].getItem(`imagegen.${name}`)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  set(name, value) {
    try {
      window[area].setItem(`imagegen.${name}`, JSON.stringify(value));
    } catch { /* storage is off or full: nothing is remembered */ }
  },
  forget(name) {
    try {
      window[area].removeItem(`imagegen.${name}`);
    } catch { /* as above */ }
  },
});

export const kept = values("localStorage");
export const keptHere = values("sessionStorage");

const STORE = "pictures";
let opening = null;

function database() {
  opening ??= done(indexedDB.open("imagegen", 1), (request) => request.result.createObjectStore(STORE));
  return opening;
}

function done(request, upgrade = null) {
  return new Promise((resolve, reject) => {
    if (upgrade) request.onupgradeneeded = () => upgrade(request);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

export const pictures = {
  async get(name, otherwise) {
    try {
      const store = (await database()).transaction(STORE).objectStore(STORE);
      return (await done(store.get(name))) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  async set(name, value) {
    try {
      const store = (await database()).transaction(STORE, "readwrite").objectStore(STORE);
      await done(store.put(value, name));
    } catch { /* as above */ }
  },
};
