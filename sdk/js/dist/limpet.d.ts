/**
 * Binds login sessions to a key that stays in this browser, and proves each
 * request with it, so that a copied cookie or token is worth nothing elsewhere.
 *
 * The key lies in the browser's profile on disk: that is level "software".
 */
/** What a page may show of the session. */
export interface State {
    /** "software": a key in this browser's profile; "none": requests go as they are. */
    level: "software" | "none";
    /** Why it is "none", where that is not for want of a login. */
    reason?: string;
    /** The device key's JWK thumbprint (RFC 7638). */
    key?: string;
    /** The session's ID, SHA-256 of its token, in base64url. */
    session?: string;
    /** When the bound cookie ends, in milliseconds since 1970; the SDK renews it before. */
    cookieUntil?: number;
}
/** Tells whether this browser has a key for a session. */
export declare function state(): Promise<State>;
/**
 * fetch of the browser, with a proof where the request is of a session of this
 * origin. Other requests go as they are, untouched.
 */
export declare function fetch(input: RequestInfo | URL, init?: RequestInit): Promise<Response>;
/**
 * Sends the app's own login request, as fetch does, with the offer of a new
 * device key. If the server binds the session to it, requests are proven from then on.
 * A browser that can keep no key logs in without one.
 */
export declare function login(input: RequestInfo | URL, init?: RequestInit): Promise<Response>;
/**
 * Sends the app's own logout request, proven, and forgets the key when the answer is
 * not an error, or says that the session is over.
 */
export declare function logout(input: RequestInfo | URL, init?: RequestInit): Promise<Response>;
/**
 * Renews the bound cookie now. It resolves to true if the cookie is fresh, to
 * false if this browser has no key for the session; it rejects if the server cannot be asked.
 */
export declare function refresh(): Promise<boolean>;
/**
 * Has fetch and XMLHttpRequest of this page or worker prove the requests that go
 * to its own origin, and keeps the bound cookie alive. Synchronous XMLHttpRequests
 * go as they are.
 */
export declare function install(): void;
