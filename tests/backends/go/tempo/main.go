// Command tempo is Grafana Tempo as one process, from its packages rather than its main package: Go 1.21 changed the
// order in which packages are initialized, so that gRPC's codec takes the place of Tempo's, and spans crash it.
package main

import (
	"flag"
	"log"
	"os"
	"reflect"
	"strings"

	gogo "github.com/gogo/protobuf/proto"
	"github.com/grafana/tempo/cmd/tempo/app"
	tempolog "github.com/grafana/tempo/pkg/util/log"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto"
	"gopkg.in/yaml.v2"
)

// codec encodes Tempo's own messages, which hold Go types that gRPC's codec does not take.
type codec struct {
	encoding.Codec
}

func isTempos(message any) bool {
	return strings.HasPrefix(reflect.TypeOf(message).Elem().PkgPath(), "github.com/grafana/tempo/")
}

func (c codec) Marshal(message any) ([]byte, error) {
	if isTempos(message) {
		return gogo.Marshal(message.(gogo.Message))
	}
	return c.Codec.Marshal(message)
}

func (c codec) Unmarshal(data []byte, message any) error {
	if isTempos(message) {
		return gogo.Unmarshal(data, message.(gogo.Message))
	}
	return c.Codec.Unmarshal(data, message)
}

func run(file string) error {
	var config app.Config
	config.RegisterFlagsAndApplyDefaults("", flag.NewFlagSet("", flag.ContinueOnError))
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := yaml.UnmarshalStrict(text, &config); err != nil {
		return err
	}
	tempolog.InitLogger(&config.Server)
	tempo, err := app.New(config)
	if err != nil {
		return err
	}
	return tempo.Run()
}

func main() {
	if len(os.Args) != 2 {
		log.Fatalf("usage: %s FILE", os.Args[0])
	}
	encoding.RegisterCodec(codec{encoding.GetCodec("proto")})
	if err := run(os.Args[1]); err != nil {
		log.Fatal(err)
	}
}
