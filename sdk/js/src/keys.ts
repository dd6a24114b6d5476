// Where the device keys stay: IndexedDB keeps keys that no script can export.

/** A login session and its device key. */
export interface Session {
  n: number; // its key in the store
  key: CryptoKey; // the private half
  name: string; // its thumbprint
  made: number; // ms
  id?: string; // of the session, base64; not before the login has succeeded
  cookie?: boolean; // where its token travels; undefined if the server does not say
  refresh?: string; // path that renews the bound cookie
  until?: number; // ms, when the bound cookie ends
  life?: number; // ms, that of a fresh one
  server?: string; // the last Limpet-Key
  clock?: number; // ms that the server's clock is ahead
}

const name = "limpet";
const patience = 5_000; // ms; IndexedDB that never answers has been seen

/**
 * Runs one transaction, and returns the request's result once it is written; to
 * disk if durability is "strict". The database is closed again: an open one can keep a
 * page from being put aside, and the storage from being cleared.
 */
function transact<T>(mode: IDBTransactionMode, work: (store: IDBObjectStore) => IDBRequest, durability: IDBTransactionDurability = "relaxed"): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error("limpet: IndexedDB does not answer")), patience);
    const fail = (e: unknown) => {
      clearTimeout(timer);
      reject(e);
    };
    const open = indexedDB.open(name, 1); // throws where storage is blocked
    open.onupgradeneeded = () => open.result.createObjectStore(name, { keyPath: "n", autoIncrement: true });
    open.onerror = () => fail(open.error);
    open.onsuccess = () => {
      const db = open.result;
      try {
        const transaction = db.transaction(name, mode, { durability });
        const request = work(transaction.objectStore(name));
        transaction.oncomplete = () => {
          clearTimeout(timer);
          resolve(request.result);
        };
        transaction.onabort = () => fail(transaction.error);
      } catch (e) {
        fail(e);
      }
      db.close(); // once the transaction is over
    };
  });
}

/** All sessions, the oldest first. */
export const load = () => transact<Session[]>("readonly", (store) => store.getAll());

/** Writes a new session down, and returns its number. */
export const add = (s: Omit<Session, "n">) => transact<number>("readwrite", (store) => store.add(s), "strict");

/** Changes a session that is still there: another tab may have ended it. */
export const update = (n: number, change: Partial<Session>) =>
  transact<unknown>("readwrite", (store) => {
    const request = store.get(n);
    request.onsuccess = () => request.result && store.put({ ...request.result, ...change });
    return request;
  });

/** Forgets sessions, and with them their keys. */
export const remove = (...ns: number[]) =>
  transact<unknown>("readwrite", (store) => ns.map((n) => store.delete(n))[0]);
