package softkey

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/godbus/dbus/v5"
)

// SecretService keeps the key in the desktop's keyring (GNOME Keyring, KWallet,
// KeePassXC), through the D-Bus interface org.freedesktop.secrets. It exists
// where there is a session bus and a keyring; a locked keyring prompts its user.
func SecretService() Secret {
	return Secret{secretServiceKind, func(ctx context.Context, _ string, h *header, create bool) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, promptTimeout)
		defer cancel()
		s, err := connectSecrets(ctx)
		if err != nil {
			return nil, fmt.Errorf("no Secret Service here: %w", err)
		}
		defer s.conn.Close()
		if create {
			key := make([]byte, keySize)
			rand.Read(key)
			if err := s.store(ctx, h.ID, key); err != nil {
				return nil, fmt.Errorf("the Secret Service did not store the key: %w", err)
			}
			return key, nil
		}
		key, err := s.lookup(ctx, h.ID)
		if err != nil {
			return nil, fmt.Errorf("the Secret Service did not return the key: %w", err)
		}
		return key, nil
	}}
}

// promptTimeout is how long a user may take to unlock the keyring.
const promptTimeout = 2 * time.Minute

const (
	secretsName = "org.freedesktop.secrets"
	secretsPath = "/org/freedesktop/secrets"
	serviceIf   = "org.freedesktop.Secret.Service"
)

// secrets is an open session with the Secret Service. See the Secret Service
// API draft 0.2, specifications.freedesktop.org/secret-service.
type secrets struct {
	conn    *dbus.Conn
	session dbus.ObjectPath
}

// secretStruct is the specification's Secret: signature (oayays).
type secretStruct struct {
	Session     dbus.ObjectPath
	Parameters  []byte
	Value       []byte
	ContentType string
}

// connectSecrets opens a session in which secrets travel plain: the session
// bus is a socket that only this user's processes can read, and those could ask
// the service themselves.
func connectSecrets(ctx context.Context) (*secrets, error) {
	conn, err := dbus.SessionBusPrivateNoAutoStartup(dbus.WithContext(ctx)) // a bus started for us would have no keyring
	if err != nil {
		return nil, err
	}
	if err = conn.Auth(nil); err == nil {
		err = conn.Hello()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	s := &secrets{conn: conn}
	var output dbus.Variant
	err = s.service().CallWithContext(ctx, serviceIf+".OpenSession", 0, "plain", dbus.MakeVariant("")).Store(&output, &s.session)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return s, nil
}

func (s *secrets) service() dbus.BusObject { return s.conn.Object(secretsName, secretsPath) }

func attributes(id string) map[string]string {
	return map[string]string{"application": "limpet", "keystore": id}
}

func (s *secrets) store(ctx context.Context, id string, key []byte) error {
	var collection dbus.ObjectPath
	err := s.service().CallWithContext(ctx, serviceIf+".ReadAlias", 0, "default").Store(&collection)
	if err != nil {
		return err
	}
	if collection == "/" {
		return errors.New("the keyring has no default collection")
	}
	if err := s.unlock(ctx, collection); err != nil {
		return err
	}
	properties := map[string]dbus.Variant{
		"org.freedesktop.Secret.Item.Label":      dbus.MakeVariant("Limpet device keys"),
		"org.freedesktop.Secret.Item.Attributes": dbus.MakeVariant(attributes(id)),
	}
	var item, prompt dbus.ObjectPath
	err = s.conn.Object(secretsName, collection).CallWithContext(ctx, "org.freedesktop.Secret.Collection.CreateItem", 0, properties,
		secretStruct{s.session, nil, key, "application/octet-stream"}, true).Store(&item, &prompt)
	if err != nil {
		return err
	}
	return s.prompt(ctx, prompt)
}

func (s *secrets) lookup(ctx context.Context, id string) ([]byte, error) {
	var unlocked, locked []dbus.ObjectPath
	err := s.service().CallWithContext(ctx, serviceIf+".SearchItems", 0, attributes(id)).Store(&unlocked, &locked)
	if err != nil {
		return nil, err
	}
	items := append(unlocked, locked...)
	if len(items) == 0 {
		return nil, fmt.Errorf("%w: the keyring has no key for it", ErrWrongSecret)
	}
	if err := s.unlock(ctx, items[0]); err != nil {
		return nil, err
	}
	var secret secretStruct
	err = s.conn.Object(secretsName, items[0]).CallWithContext(ctx, "org.freedesktop.Secret.Item.GetSecret", 0, s.session).Store(&secret)
	if err != nil {
		return nil, err
	}
	if len(secret.Value) != keySize {
		return nil, fmt.Errorf("%w: the keyring's key has %d bytes", ErrWrongSecret, len(secret.Value))
	}
	return secret.Value, nil
}

// unlock unlocks a collection or an item, which may prompt the user.
func (s *secrets) unlock(ctx context.Context, object dbus.ObjectPath) error {
	var done []dbus.ObjectPath
	var prompt dbus.ObjectPath
	err := s.service().CallWithContext(ctx, serviceIf+".Unlock", 0, []dbus.ObjectPath{object}).Store(&done, &prompt)
	if err != nil {
		return err
	}
	return s.prompt(ctx, prompt)
}

// prompt shows the service's prompt, "/" for none, and waits for its end.
func (s *secrets) prompt(ctx context.Context, prompt dbus.ObjectPath) error {
	if prompt == "/" {
		return nil
	}
	const promptIf = "org.freedesktop.Secret.Prompt"
	if err := s.conn.AddMatchSignalContext(ctx, dbus.WithMatchObjectPath(prompt), dbus.WithMatchInterface(promptIf)); err != nil {
		return err
	}
	signals := make(chan *dbus.Signal, 8)
	s.conn.Signal(signals)
	defer s.conn.RemoveSignal(signals)
	if err := s.conn.Object(secretsName, prompt).CallWithContext(ctx, promptIf+".Prompt", 0, "").Err; err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the keyring to be unlocked: %w", ctx.Err())
		case sig, ok := <-signals:
			if !ok {
				return errors.New("the session bus went away")
			}
			if sig.Path != prompt || sig.Name != promptIf+".Completed" || len(sig.Body) != 2 {
				continue
			}
			if dismissed, ok := sig.Body[0].(bool); !ok || dismissed {
				return errors.New("the keyring stays locked: its prompt was dismissed")
			}
			return nil
		}
	}
}
